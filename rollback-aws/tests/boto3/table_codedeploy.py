"""CodeDeploy: every operation that the library calls, those that set the stage for them, and what must be refused.

An entry is as in table_lambda.py.
"""

import json

ROLE = "arn:aws:iam::123456789012:role/codedeploy"
APP = {"applicationName": "checked"}
GROUP = {**APP, "deploymentGroupName": "production"}
NOW = {"currentDeploymentGroupName": "production", **APP}


def spec(number, hook=None):
    content = {"version": 0.0, "Resources": [{"TargetService": {"Type": "AWS::ECS::Service", "Properties": {
        "TaskDefinition": f"arn:aws:ecs:us-east-1:123456789012:task-definition/checked:{number}",
        "LoadBalancerInfo": {"ContainerName": "checked", "ContainerPort": 80}}}}]}
    if hook:
        content["Hooks"] = [{hook: "checker"}]
    return {"revisionType": "AppSpecContent", "appSpecContent": {"content": json.dumps(content)}}


def deploys(step, number, keeps, wants="ok", **more):
    return {"step": step, "call": "create_deployment", "with": {**GROUP, "revision": spec(number), **more}, "wants": wants,
            "keeps": {keeps: "deploymentId"} if keeps else {}}


def becomes(step, deployment, status):
    return {"step": step, "call": "batch_get_deployments", "with": {"deploymentIds": [deployment]},
            "until": {"deploymentsInfo.0.status": status}}


LAMBDA = {"applicationName": "checked-lambda", "deploymentGroupName": "production"}
ALIAS = {"version": 0.0, "Resources": [{"checked": {"Type": "AWS::Lambda::Function", "Properties": {
    "Name": "checked", "Alias": "live", "CurrentVersion": "1", "TargetVersion": "2"}}}]}

STEPS = [
    {"step": "an application is created", "call": "create_application", "with": {**APP, "computePlatform": "ECS"}},
    {"step": "an application is not created twice", "call": "create_application", "with": {**APP, "computePlatform": "ECS"},
     "wants": "ApplicationAlreadyExistsException"},
    {"step": "it is read", "call": "get_application", "with": APP},
    {"step": "a group is created", "call": "create_deployment_group", "with": {
        **GROUP, "serviceRoleArn": ROLE, "deploymentConfigName": "CodeDeployDefault.ECSAllAtOnce",
        "ecsServices": [{"clusterName": "prod", "serviceName": "checked"}],
        "deploymentStyle": {"deploymentType": "BLUE_GREEN", "deploymentOption": "WITH_TRAFFIC_CONTROL"},
        "blueGreenDeploymentConfiguration": {
            "deploymentReadyOption": {"actionOnTimeout": "STOP_DEPLOYMENT", "waitTimeInMinutes": 60},
            "terminateBlueInstancesOnDeploymentSuccess": {"action": "TERMINATE", "terminationWaitTimeInMinutes": 60}}}},
    {"step": "a group is not created twice", "call": "create_deployment_group", "with": {**GROUP, "serviceRoleArn": ROLE},
     "wants": "DeploymentGroupAlreadyExistsException"},
    {"step": "a group of nothing is not there", "call": "get_deployment_group",
     "with": {**APP, "deploymentGroupName": "nobody"}, "wants": "DeploymentGroupDoesNotExistException"},
    {"step": "a group of no application is not there", "call": "get_deployment_group",
     "with": {**GROUP, "applicationName": "nobody"}, "wants": "ApplicationDoesNotExistException"},
    {"step": "groups are listed", "call": "list_deployment_groups", "with": APP, "shows": {"deploymentGroups": ["production"]}},

    {"step": "alarms and events are set side by side", "call": "update_deployment_group", "with": {
        **NOW, "alarmConfiguration": {"enabled": True, "alarms": [{"name": "checked-errors"}]},
        "autoRollbackConfiguration": {"enabled": True, "events": ["DEPLOYMENT_FAILURE", "DEPLOYMENT_STOP_ON_ALARM"]}}},
    {"step": "automatic rollback needs events", "call": "update_deployment_group",
     "with": {**NOW, "autoRollbackConfiguration": {"enabled": True, "events": []}},
     "wants": "InvalidAutoRollbackConfigException"},
    {"step": "alarms need names", "call": "update_deployment_group",
     "with": {**NOW, "alarmConfiguration": {"enabled": True, "alarms": []}}, "wants": "InvalidAlarmConfigException"},
    {"step": "an alarm is named once", "call": "update_deployment_group",
     "with": {**NOW, "alarmConfiguration": {"enabled": True, "alarms": [{"name": "a"}, {"name": "a"}]}},
     "wants": "InvalidAlarmConfigException"},
    {"step": "the group is read", "call": "get_deployment_group", "with": GROUP},
    {"step": "groups are read together", "call": "batch_get_deployment_groups",
     "with": {**APP, "deploymentGroupNames": ["production"]}, "counts": {"deploymentGroupsInfo": 1}},

    {"step": "a predefined configuration is there", "call": "get_deployment_config",
     "with": {"deploymentConfigName": "CodeDeployDefault.ECSCanary10Percent5Minutes"}},
    {"step": "a configuration that never was is not", "call": "get_deployment_config",
     "with": {"deploymentConfigName": "rollback.never-was"}, "wants": "DeploymentConfigDoesNotExistException"},
    {"step": "a configuration is created", "call": "create_deployment_config", "with": {
        "deploymentConfigName": "checked-5", "computePlatform": "ECS", "trafficRoutingConfig": {
            "type": "TimeBasedLinear", "timeBasedLinear": {"linearPercentage": 5, "linearInterval": 1}}}},
    {"step": "a configuration is not created twice", "call": "create_deployment_config",
     "with": {"deploymentConfigName": "checked-5", "computePlatform": "ECS"},
     "wants": "DeploymentConfigAlreadyExistsException"},
    {"step": "an increment is at most 99 %", "call": "create_deployment_config", "with": {
        "deploymentConfigName": "checked-100", "computePlatform": "ECS", "trafficRoutingConfig": {
            "type": "TimeBasedLinear", "timeBasedLinear": {"linearPercentage": 100, "linearInterval": 1}}},
     "wants": "InvalidTrafficRoutingConfigurationException"},

    deploys("a configuration that never was deploys nothing", 1, None, "DeploymentConfigDoesNotExistException",
            deploymentConfigName="rollback.never-was"),
    deploys("a description has 256 characters", 1, None, "DescriptionTooLongException", description="x" * 257),
    deploys("a revision is deployed", 1, "first", description="by hand"),
    deploys("a group has one deployment at a time", 2, None, "DeploymentLimitExceededException"),
    becomes("it waits before the traffic", "<first>", "Ready"),
    {"step": "it does not wait for the termination", "call": "continue_deployment", "wants": "InvalidDeploymentStatusException",
     "with": {"deploymentId": "<first>", "deploymentWaitType": "TERMINATION_WAIT"}},
    {"step": "it is let go on", "call": "continue_deployment",
     "with": {"deploymentId": "<first>", "deploymentWaitType": "READY_WAIT"}},
    {"step": "it waits no more", "call": "continue_deployment", "wants": "DeploymentIsNotInReadyStateException",
     "with": {"deploymentId": "<first>", "deploymentWaitType": "READY_WAIT"}},
    {"step": "its traffic is moved, and it waits for the termination", "call": "get_deployment",
     "with": {"deploymentId": "<first>"}, "until": {"deploymentInfo.instanceTerminationWaitTimeStarted": True}},
    {"step": "its targets are listed", "call": "list_deployment_targets", "with": {"deploymentId": "<first>"},
     "shows": {"targetIds": ["prod:checked"]}},
    {"step": "a target is read", "call": "get_deployment_target",
     "with": {"deploymentId": "<first>", "targetId": "prod:checked"}},
    {"step": "targets are read together", "call": "batch_get_deployment_targets",
     "with": {"deploymentId": "<first>", "targetIds": ["prod:checked"]}, "counts": {"deploymentTargets": 1}},
    {"step": "25 targets are read at most", "call": "batch_get_deployment_targets",
     "wants": "DeploymentTargetListSizeExceededException",
     "with": {"deploymentId": "<first>", "targetIds": [f"prod:{n}" for n in range(26)]}},
    {"step": "a target that is none is not there", "call": "get_deployment_target",
     "wants": "DeploymentTargetDoesNotExistException", "with": {"deploymentId": "<first>", "targetId": "prod:nobody"}},
    {"step": "its wait is ended", "call": "continue_deployment",
     "with": {"deploymentId": "<first>", "deploymentWaitType": "TERMINATION_WAIT"}},
    becomes("it succeeds", "<first>", "Succeeded"),
    {"step": "what is over is not stopped", "call": "stop_deployment", "wants": "DeploymentAlreadyCompletedException",
     "with": {"deploymentId": "<first>"}},
    {"step": "what is over does not go on", "call": "continue_deployment", "wants": "DeploymentAlreadyCompletedException",
     "with": {"deploymentId": "<first>"}},
    {"step": "its revision is kept", "call": "get_deployment", "with": {"deploymentId": "<first>"},
     "keeps": {"sha": "deploymentInfo.revision.appSpecContent.sha256"}},
    {"step": "content is fetched by its hash", "call": "get_application_revision", "with": {
        **APP, "revision": {"revisionType": "AppSpecContent", "appSpecContent": {"sha256": "<sha>"}}}},
    {"step": "revisions are read together", "call": "batch_get_application_revisions", "counts": {"revisions": 1}, "with": {
        **APP, "revisions": [{"revisionType": "AppSpecContent", "appSpecContent": {"sha256": "<sha>"}}]}},
    {"step": "a hash that never was is none", "call": "get_application_revision", "wants": "RevisionDoesNotExistException",
     "with": {**APP, "revision": {"revisionType": "AppSpecContent", "appSpecContent": {"sha256": "0" * 64}}}},
    {"step": "a revision is registered", "call": "register_application_revision", "with": {**APP, "revision": spec(7)}},

    deploys("the second revision is deployed", 2, "second"),
    becomes("it is ready", "<second>", "Ready"),
    {"step": "it is stopped with rollback", "call": "stop_deployment", "shows": {"status": "Pending"},
     "with": {"deploymentId": "<second>", "autoRollbackEnabled": True}},
    becomes("it ends as stopped", "<second>", "Stopped"),
    {"step": "its rollback is named", "call": "get_deployment", "with": {"deploymentId": "<second>"},
     "keeps": {"third": "deploymentInfo.rollbackInfo.rollbackDeploymentId"}},
    becomes("the rollback succeeds", "<third>", "Succeeded"),
    {"step": "all of the group's deployments are listed", "call": "list_deployments",
     "with": {**GROUP, "createTimeRange": {"start": 1_700_000_000}}, "counts": {"deployments": 3}},
    {"step": "those that failed are none", "call": "list_deployments",
     "with": {**GROUP, "includeOnlyStatuses": ["Failed"]}, "counts": {"deployments": 0}},
    {"step": "25 deployments are read at most", "call": "batch_get_deployments", "wants": "BatchLimitExceededException",
     "with": {"deploymentIds": [f"d-{n:09}" for n in range(26)]}},
    {"step": "some must be named", "call": "batch_get_deployments", "wants": "DeploymentIdRequiredException",
     "with": {"deploymentIds": []}},
    {"step": "a deployment that never was is not there", "call": "get_deployment",
     "wants": "DeploymentDoesNotExistException", "with": {"deploymentId": "d-NOBODY000"}},
    {"step": "an id has a form", "call": "get_deployment", "wants": "InvalidDeploymentIdException",
     "with": {"deploymentId": "nobody"}},
    {"step": "what was never deployed is not stopped", "call": "stop_deployment",
     "wants": "DeploymentDoesNotExistException", "with": {"deploymentId": "d-NOBODY000"}},

    {"step": "an application of functions is created", "call": "create_application",
     "with": {"applicationName": "checked-lambda", "computePlatform": "Lambda"}},
    {"step": "with a group", "call": "create_deployment_group", "with": {
        **LAMBDA, "serviceRoleArn": ROLE,
        "deploymentStyle": {"deploymentType": "BLUE_GREEN", "deploymentOption": "WITH_TRAFFIC_CONTROL"}}},
    {"step": "a function is deployed, with a hook", "call": "create_deployment", "keeps": {"hooked": "deploymentId"}, "with": {
        **LAMBDA, "revision": {"revisionType": "AppSpecContent", "appSpecContent": {
            "content": json.dumps({**ALIAS, "Hooks": [{"BeforeAllowTraffic": "checker"}]})}}}},
    {"step": "a hook is answered with one of two words", "call": "put_lifecycle_event_hook_execution_status",
     "wants": "InvalidLifecycleEventHookExecutionStatusException",
     "with": {"deploymentId": "<hooked>", "lifecycleEventHookExecutionId": "x", "status": "Skipped"}},
    {"step": "a hook has its id", "call": "put_lifecycle_event_hook_execution_status",
     "wants": "InvalidLifecycleEventHookExecutionIdException",
     "with": {"deploymentId": "<hooked>", "lifecycleEventHookExecutionId": "x", "status": "Succeeded"}},
    {"step": "a function's deployment does not wait", "call": "continue_deployment",
     "wants": "UnsupportedActionForDeploymentTypeException", "with": {"deploymentId": "<hooked>"}},
    becomes("it is in progress", "<hooked>", "InProgress"),
    {"step": "a function's targets are listed", "call": "list_deployment_targets", "with": {"deploymentId": "<hooked>"},
     "shows": {"targetIds": ["checked:live"]}},
    {"step": "a function's target is read", "call": "get_deployment_target",
     "with": {"deploymentId": "<hooked>", "targetId": "checked:live"}},
    {"step": "a configuration of another platform deploys nothing", "call": "create_deployment",
     "wants": "InvalidDeploymentConfigNameException", "with": {
         **LAMBDA, "deploymentConfigName": "CodeDeployDefault.ECSAllAtOnce",
         "revision": {"revisionType": "AppSpecContent", "appSpecContent": {"content": json.dumps(ALIAS)}}}},
    {"step": "it is stopped", "call": "stop_deployment", "with": {"deploymentId": "<hooked>"}},
    {"step": "the configuration is deleted", "call": "delete_deployment_config", "with": {"deploymentConfigName": "checked-5"}},
    {"step": "the application is deleted", "call": "delete_application", "with": APP},
]
