"""CloudFormation: stacks as the backend asks for them, and what must be refused. The form is that of table_lambda.py."""

import json

TEMPLATE = {
    "Parameters": {
        "Label": {"Type": "String"}, "Password": {"Type": "String", "NoEcho": True},
        "Size": {"Type": "String", "Default": "small"},
    },
    "Resources": {
        "Topic": {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": {"Ref": "Label"}}},
        "Queue": {"Type": "AWS::SQS::Queue"},
    },
}
ROLE = {"Type": "AWS::IAM::Role", "Properties": {"AssumeRolePolicyDocument": {"Statement": []}}}
SHOP = {"StackName": "shop"}
ALARM = "arn:aws:cloudwatch:us-east-1:123456789012:alarm:errors"
KEPT = {"ParameterKey": "Password", "UsePreviousValue": True}


def body(**more):
    return {"TemplateBody": json.dumps({**TEMPLATE, **more})}


def label(value):
    return {"ParameterKey": "Label", "ParameterValue": value}


def updates(step, wants="ok", careless=False, shows=None, **more):
    # What is to be refused would be told from what is to be taken, if it were taken.
    value = label("v2" if wants == "ok" else "v9")
    given = {**SHOP, **body(), "Parameters": [value, KEPT], **more}
    return {"step": step, "call": "update_stack", "with": given, "wants": wants, "careless": careless, "shows": shows or {}}


def becomes(step, status, **more):
    return {"step": step, "call": "describe_stacks", "with": SHOP, "until": {"Stacks.0.StackStatus": status}, **more}


STEPS = [
    {"step": "a stack that is not there is not described", "call": "describe_stacks", "with": SHOP, "wants": "ValidationError"},
    {"step": "nor updated", "call": "update_stack", "with": {**SHOP, **body()}, "wants": "ValidationError"},
    {"step": "a stack needs values for its parameters", "call": "create_stack", "with": {**SHOP, **body()},
     "wants": "ValidationError"},
    {"step": "a stack is created", "call": "create_stack", "keeps": {"id": "StackId"},
     "with": {**SHOP, **body(), "ClientRequestToken": "create-1", "Tags": [{"Key": "team", "Value": "shop"}], "Parameters": [
         label("v1"), {"ParameterKey": "Password", "ParameterValue": "swordfish"}]}},
    becomes("it becomes complete", "CREATE_COMPLETE", shows={"Stacks.0.StackId": "<id>"}),
    {"step": "its parameters are told, the secret one is not", "call": "describe_stacks", "with": SHOP, "shows": {
        "Stacks.0.Parameters": [
            {"ParameterKey": "Label", "ParameterValue": "v1"}, {"ParameterKey": "Password", "ParameterValue": "****"},
            {"ParameterKey": "Size", "ParameterValue": "small"}]}},
    {"step": "its template is as it was given", "call": "get_template", "with": {**SHOP, "TemplateStage": "Original"},
     "shows": {"TemplateBody": TEMPLATE}},
    {"step": "what its template declares is told", "call": "get_template_summary", "with": SHOP, "counts": {"Parameters": 3}},
    {"step": "a template is checked", "call": "get_template_summary", "with": body(Resources={"Role": ROLE}),
     "shows": {"Capabilities": ["CAPABILITY_IAM"]}},
    {"step": "a broken template is refused", "call": "get_template_summary", "with": {"TemplateBody": "{"},
     "wants": "ValidationError"},
    {"step": "its events are told, the newest first", "call": "describe_stack_events", "with": SHOP,
     "shows": {"StackEvents.0.ResourceStatus": "CREATE_COMPLETE", "StackEvents.0.ClientRequestToken": "create-1"}},

    updates("an update that changes nothing is refused", "ValidationError", Parameters=[label("v1"), KEPT]),
    updates("a parameter that the template does not declare is refused", "ValidationError",
            Parameters=[label("v9"), KEPT, {"ParameterKey": "Colour", "ParameterValue": "red"}]),
    updates("a parameter without value or default is refused", "ValidationError", Parameters=[KEPT]),
    updates("a role must be acknowledged", "InsufficientCapabilitiesException",
            **body(Resources={**TEMPLATE["Resources"], "Role": ROLE})),
    updates("a template is one of three", "ValidationError", UsePreviousTemplate=True),
    updates("a template in a request has 51,200 bytes at most", "ValidationError", **body(Description="x" * 52_000)),
    updates("a token is letters, digits and hyphens", "ValidationError", careless=True, ClientRequestToken="a/b"),
    updates("five alarms are triggers at most", "ValidationError", careless=True, RollbackConfiguration={
        "RollbackTriggers": [{"Arn": f"{ALARM}-{n}", "Type": "AWS::CloudWatch::Alarm"} for n in range(6)]}),
    updates("three hours are monitored at most", "ValidationError", careless=True,
            RollbackConfiguration={"MonitoringTimeInMinutes": 181}),
    becomes("and none of this has updated it", "CREATE_COMPLETE"),

    updates("an update is taken", ClientRequestToken="update-1", shows={"StackId": "<id>"}),
    updates("the same with the same token is the same", ClientRequestToken="update-1", shows={"StackId": "<id>"}),
    updates("another with the same token is refused", "TokenAlreadyExistsException", ClientRequestToken="update-1"),
    updates("a second one at the same time is refused", "ValidationError"),
    {"step": "it is cancelled", "call": "cancel_update_stack", "with": {**SHOP, "ClientRequestToken": "cancel-1"}},
    becomes("it is as it was", "UPDATE_ROLLBACK_COMPLETE", shows={"Stacks.0.Parameters.0.ParameterValue": "v1"}),
    {"step": "what does not run is not cancelled", "call": "cancel_update_stack", "with": SHOP, "wants": "ValidationError"},
    {"step": "what did not fail is not continued", "call": "continue_update_rollback", "with": SHOP, "wants": "ValidationError"},
    {"step": "what did not fail is not rolled back", "call": "rollback_stack", "with": SHOP, "wants": "ValidationError"},

    {"step": "an alarm that is not there undoes an update", "call": "update_stack",
     "with": {**SHOP, **body(), "Parameters": [label("v2"), KEPT], "ClientRequestToken": "update-2", "RollbackConfiguration": {
         "RollbackTriggers": [{"Arn": ALARM, "Type": "AWS::CloudWatch::Alarm"}]}}},
    becomes("it is as it was again", "UPDATE_ROLLBACK_COMPLETE", shows={"Stacks.0.Parameters.0.ParameterValue": "v1"}),
    updates("an update is taken once more", ClientRequestToken="update-3", RollbackConfiguration={
        "RollbackTriggers": [], "MonitoringTimeInMinutes": 0}),
    becomes("and is complete", "UPDATE_COMPLETE", shows={"Stacks.0.Parameters.0.ParameterValue": "v2"}),
    {"step": "its events carry its token", "call": "describe_stack_events", "with": SHOP,
     "shows": {"StackEvents.0.ResourceStatus": "UPDATE_COMPLETE", "StackEvents.0.ClientRequestToken": "update-3"}},
    {"step": "tags stay when nobody says otherwise", "call": "describe_stacks", "with": {"StackName": "<id>"},
     "shows": {"Stacks.0.Tags": [{"Key": "team", "Value": "shop"}]}},
]
