"""CloudWatch Logs: the last lines of a log group. The form is that of table_lambda.py."""

import time

NOW = int(time.time() * 1000)
GROUP = {"logGroupName": "/shop/canaried"}
STREAM = {**GROUP, "logStreamName": "2/first"}

STEPS = [
    {"step": "a log group is made", "call": "create_log_group", "with": GROUP},
    {"step": "it is made once", "call": "create_log_group", "with": GROUP, "wants": "ResourceAlreadyExistsException"},
    {"step": "a log stream is made", "call": "create_log_stream", "with": STREAM},
    {"step": "lines are put", "call": "put_log_events", "with": {**STREAM, "logEvents": [
        {"timestamp": NOW - 3000, "message": "INFO all is well"},
        {"timestamp": NOW - 2000, "message": "ERROR the database is gone"},
        {"timestamp": NOW - 1000, "message": "ERROR nobody is there"},
    ]}},
    {"step": "all are read", "call": "filter_log_events", "with": {**GROUP, "startTime": NOW - 60000, "endTime": NOW},
     "counts": {"events": 3}},
    {"step": "those that a pattern picks", "call": "filter_log_events", "counts": {"events": 2},
     "with": {**GROUP, "filterPattern": "?ERROR ?panicked", "startTime": NOW - 60000}},
    {"step": "those that have every term and not another", "call": "filter_log_events", "counts": {"events": 1},
     "with": {**GROUP, "filterPattern": "ERROR -nobody"}},
    {"step": "those of streams that begin so", "call": "filter_log_events", "counts": {"events": 0},
     "with": {**GROUP, "logStreamNamePrefix": "1/"}},
    {"step": "lines come in pages", "call": "filter_log_events", "with": {**GROUP, "limit": 2}, "counts": {"events": 2},
     "keeps": {"page": "nextToken"}},
    {"step": "and the next page of lines follows", "call": "filter_log_events", "counts": {"events": 1},
     "with": {**GROUP, "limit": 2, "nextToken": "<page>"}},
    {"step": "a group that is not there has no lines", "call": "filter_log_events", "wants": "ResourceNotFoundException",
     "with": {"logGroupName": "/shop/misspelt"}},
    {"step": "a stream that is not there takes none", "call": "put_log_events", "wants": "ResourceNotFoundException",
     "with": {**GROUP, "logStreamName": "misspelt", "logEvents": [{"timestamp": NOW, "message": "lost"}]}},
    {"step": "the log group is deleted", "call": "delete_log_group", "with": GROUP},
]
