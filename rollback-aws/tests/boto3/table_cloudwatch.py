"""CloudWatch: alarms and metrics as gates ask for them, and what must be refused. The form is that of table_lambda.py."""

from datetime import datetime, timedelta, timezone

NOW = datetime.now(timezone.utc).replace(second=0, microsecond=0)
SERIES = {"Namespace": "Rollback/Test", "MetricName": "Errors"}
ALARM = {
    "AlarmName": "canary-errors", **SERIES, "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1, "Threshold": 1.0,
    "ComparisonOperator": "GreaterThanThreshold", "TreatMissingData": "notBreaching",
}
ALL_TYPES = ["MetricAlarm", "CompositeAlarm"]


def alarm(step, wants="ok", careless=False, **more):
    return {"step": step, "call": "put_metric_alarm", "with": {**ALARM, **more}, "wants": wants, "careless": careless}


STEPS = [
    alarm("an alarm is put", Tags=[{"Key": "made-by", "Value": "rollback"}]),
    alarm("an alarm of a rate is put", AlarmName="canary-rate", MetricName=None, Namespace=None, Statistic=None, Period=None,
          Metrics=[
              {"Id": "rate", "Expression": "IF(n >= 20, 100 * e / n, 0)", "Label": "rate", "ReturnData": True},
              {"Id": "e", "ReturnData": False, "MetricStat": {"Metric": SERIES, "Period": 60, "Stat": "Sum"}},
              {"Id": "n", "ReturnData": False,
               "MetricStat": {"Metric": {**SERIES, "MetricName": "Requests"}, "Period": 60, "Stat": "Sum"}},
          ]),
    {"step": "a composite is put", "call": "put_composite_alarm",
     "with": {"AlarmName": "canary-any", "AlarmRule": "ALARM(\"canary-errors\") OR ALARM(\"canary-rate\")"}},
    {"step": "all are described by name", "call": "describe_alarms",
     "with": {"AlarmNames": ["canary-errors", "canary-rate", "canary-any"], "AlarmTypes": ALL_TYPES},
     "counts": {"MetricAlarms": 2, "CompositeAlarms": 1}},
    {"step": "a name that is not there is left out", "call": "describe_alarms",
     "with": {"AlarmNames": ["misspelt"], "AlarmTypes": ALL_TYPES}, "shows": {"MetricAlarms": [], "CompositeAlarms": []}},
    {"step": "a composite is left out unless its type is asked for", "call": "describe_alarms",
     "with": {"AlarmNames": ["canary-any"]}, "shows": {"MetricAlarms": []}},
    {"step": "they come in pages", "call": "describe_alarms", "with": {"AlarmNamePrefix": "canary-", "MaxRecords": 1},
     "counts": {"MetricAlarms": 1}, "keeps": {"page": "NextToken"}},
    {"step": "and the next page follows", "call": "describe_alarms",
     "with": {"AlarmNamePrefix": "canary-", "MaxRecords": 1, "NextToken": "<page>"}},
    {"step": "a state is set", "call": "set_alarm_state",
     "with": {"AlarmName": "canary-errors", "StateValue": "ALARM", "StateReason": "a test"}},
    {"step": "the state is told", "call": "describe_alarms", "with": {"StateValue": "ALARM", "AlarmNamePrefix": "canary-e"},
     "counts": {"MetricAlarms": 1}},
    {"step": "data are put", "call": "put_metric_data", "with": {"Namespace": "Rollback/Test", "MetricData": [
        {"MetricName": "Errors", "Value": 3.0, "Timestamp": NOW - timedelta(minutes=2)},
        {"MetricName": "Requests", "Value": 60.0, "Timestamp": NOW - timedelta(minutes=2)},
    ]}},
    {"step": "data are read, and reckoned with", "call": "get_metric_data", "counts": {"MetricDataResults": 3},
     "with": {
        "StartTime": NOW - timedelta(minutes=5), "EndTime": NOW + timedelta(minutes=1), "MetricDataQueries": [
            {"Id": "e", "MetricStat": {"Metric": SERIES, "Period": 60, "Stat": "Sum"}},
            {"Id": "n", "MetricStat": {"Metric": {**SERIES, "MetricName": "Requests"}, "Period": 60, "Stat": "Sum"}},
            {"Id": "rate", "Expression": "100 * e / n"},
        ]}},
    {"step": "an alarm that is not there has no state to set", "call": "set_alarm_state", "wants": "ResourceNotFound",
     "with": {"AlarmName": "misspelt", "StateValue": "OK", "StateReason": "a test"}},
    alarm("an operator is one that is known", "ValidationError", careless=True, ComparisonOperator="Nope"),
    alarm("a period is 10, 20, 30 or whole minutes", "ValidationError", Period=7),
    {"step": "a hundred names are asked for at most", "call": "describe_alarms", "careless": True, "wants": "ValidationError",
     "with": {"AlarmNames": [f"canary-{n}" for n in range(101)]}},
    {"step": "the composite is deleted", "call": "delete_alarms", "with": {"AlarmNames": ["canary-any"]}},
    {"step": "the others are deleted", "call": "delete_alarms", "with": {"AlarmNames": ["canary-errors", "canary-rate"]}},
]
for step in STEPS:
    step["with"] = {name: value for name, value in step["with"].items() if value is not None}
