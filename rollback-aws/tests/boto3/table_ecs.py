"""ECS: every operation that the library calls, those that set the stage for them, and what must be refused.

Entries are as in `table_lambda.py`. The pauses are answered at once, and the tasks start within the ten seconds that the runner
waits for something, as the simulator's time passes faster.
"""

HERE = {"cluster": "canaried"}
SHOP = {**HERE, "service": "shop"}
PLAIN = {**HERE, "service": "plain"}
PAUSES = [{
    "targetType": "PAUSE", "lifecycleStages": ["PRE_PRODUCTION_TRAFFIC_SHIFT", "POST_PRODUCTION_TRAFFIC_SHIFT"],
    "timeoutConfiguration": {"timeoutInMinutes": 60, "action": "ROLLBACK"},
}]
CANARY = {"strategy": "CANARY", "bakeTimeInMinutes": 0, "lifecycleHooks": PAUSES,
          "canaryConfiguration": {"canaryPercent": 10.0, "canaryBakeTimeInMinutes": 0}}
NEVER = "arn:aws:ecs:us-east-1:123456789012:service-deployment/canaried/shop/never"


def container(image, **more):
    return {"name": "shop", "image": image, "essential": True, "memory": 128,
            "portMappings": [{"containerPort": 8080, "protocol": "tcp"}], **more}


def registers(step, image, **more):
    return {"step": step, "call": "register_task_definition", "with": {"family": "shop", "containerDefinitions": [
        container(image, **more)]}}


def deployment(step, **more):
    return {"step": step, "call": "describe_service_deployments", "with": {"serviceDeploymentArns": ["<deployment>"]}, **more}


def waits(step, **is_):
    """Until the deployment is so: what is first in its answer is looked at."""
    return deployment(step, until={f"serviceDeployments.0.{name}": value for name, value in is_.items()},
                      keeps={"hook": "serviceDeployments.0.lifecycleHookDetails.-1.hookId",
                             "revision": "serviceDeployments.0.targetServiceRevision.arn"})


def answers(step, wants="ok", **more):
    return {"step": step, "call": "continue_service_deployment", "wants": wants,
            "with": {"serviceDeploymentArn": "<deployment>", "hookId": "<hook>", **more}}


# What MiniStack knows as well: it has no service deployments.
BASICS = [
    {"step": "a cluster is created", "call": "create_cluster", "with": {"clusterName": "canaried"}},
    registers("a task definition is registered", "registry.example/shop:1"),
    registers("and once more", "registry.example/shop:2"),
    registers("and one whose tasks end", "registry.example/shop:3",
              environment=[{"name": "SIMULATOR_EXIT_CODE", "value": "1"}]),
    registers("and one that is given up", "registry.example/shop:4"),
    {"step": "it is deregistered", "call": "deregister_task_definition", "with": {"taskDefinition": "shop:4"}},
    {"step": "a task definition is read", "call": "describe_task_definition",
     "with": {"taskDefinition": "shop:2", "include": ["TAGS"]}},
    {"step": "a missing one is not there", "call": "describe_task_definition", "with": {"taskDefinition": "shop:99"},
     "wants": "ClientException"},
    {"step": "a service of a missing cluster is not there", "call": "describe_services",
     "with": {"cluster": "nowhere", "services": ["shop"]}, "wants": "ClusterNotFoundException"},
    {"step": "a service is created", "call": "create_service",
     "with": {**HERE, "serviceName": "plain", "taskDefinition": "shop:1", "desiredCount": 1}},
    {"step": "the service is read", "call": "describe_services", "with": {**HERE, "services": ["plain"]},
     "until": {"services.0.runningCount": 1}, "counts": {"services": 1, "failures": 0}},
    {"step": "a missing service is told as a failure", "call": "describe_services", "with": {**HERE, "services": ["nothing"]},
     "counts": {"services": 0, "failures": 1}},
    {"step": "its tasks are listed", "call": "list_tasks", "with": {**HERE, "serviceName": "plain"}, "counts": {"taskArns": 1},
     "keeps": {"task": "taskArns.0"}},
    {"step": "and read", "call": "describe_tasks", "with": {**HERE, "tasks": ["<task>"]}, "counts": {"tasks": 1}},
    {"step": "tasks of a missing service are not there", "call": "list_tasks", "with": {**HERE, "serviceName": "nothing"},
     "wants": "ServiceNotFoundException"},
    {"step": "an update without anything is taken", "call": "update_service", "with": PLAIN},
    {"step": "a missing task definition is not deployed", "call": "update_service", "wants": "ClientException",
     "with": {**PLAIN, "taskDefinition": "shop:99"}},
    {"step": "nor is one that was deregistered", "call": "update_service", "wants": "ClientException",
     "with": {**PLAIN, "taskDefinition": "shop:4"}},
    {"step": "nothing is deployed to a missing service", "call": "update_service", "wants": "ServiceNotFoundException",
     "with": {**HERE, "service": "nothing", "taskDefinition": "shop:2"}},
]

STEPS = [
    *BASICS,
    {"step": "a pause in the middle of a shift is refused", "call": "create_service", "wants": "InvalidParameterException",
     "with": {**HERE, "serviceName": "shop", "taskDefinition": "shop:1", "deploymentConfiguration": {
         **CANARY, "lifecycleHooks": [{**PAUSES[0], "lifecycleStages": ["PRODUCTION_TRAFFIC_SHIFT"]}]}}},
    {"step": "a service that waits is created", "call": "create_service",
     "with": {**HERE, "serviceName": "shop", "taskDefinition": "shop:1", "desiredCount": 2,
              "deploymentConfiguration": CANARY}, "keeps": {"deployment": "service.currentServiceDeployment"}},
    waits("its first deployment ends", status="SUCCESSFUL"),
    {"step": "what it deployed is read", "call": "describe_service_revisions",
     "with": {"serviceRevisionArns": ["<revision>"]}, "counts": {"serviceRevisions": 1}},
    {"step": "its deployments are listed", "call": "list_service_deployments", "with": SHOP, "counts": {"serviceDeployments": 1}},
    {"step": "and those on their way", "call": "list_service_deployments", "with": {**SHOP, "status": ["IN_PROGRESS"]},
     "counts": {"serviceDeployments": 0}},
    {"step": "its two tasks are listed", "call": "list_tasks", "with": {**HERE, "serviceName": "shop"}, "counts": {"taskArns": 2},
     "keeps": {"task": "taskArns.0"}},
    {"step": "one is read", "call": "describe_tasks", "with": {**HERE, "tasks": ["<task>"]}, "counts": {"tasks": 1}},

    {"step": "an update that changes nothing deploys nothing", "call": "update_service",
     "with": {**SHOP, "taskDefinition": "shop:1"}, "keeps": {"same": "service.currentServiceDeployment"}},
    {"step": "nor does one without anything", "call": "update_service", "with": SHOP},
    {"step": "there is still one deployment", "call": "list_service_deployments", "with": SHOP,
     "counts": {"serviceDeployments": 1}},
    {"step": "what is over is not stopped", "call": "stop_service_deployment", "wants": "ConflictException",
     "with": {"serviceDeploymentArn": "<deployment>", "stopType": "ROLLBACK"}},
    {"step": "what never was is not stopped", "call": "stop_service_deployment", "wants": "ServiceDeploymentNotFoundException",
     "with": {"serviceDeploymentArn": NEVER, "stopType": "ROLLBACK"}},
    {"step": "what never was does not go on", "call": "continue_service_deployment",
     "wants": "ServiceDeploymentNotFoundException", "with": {"serviceDeploymentArn": NEVER, "hookId": "never"}},

    {"step": "the second is deployed", "call": "update_service", "with": {**SHOP, "taskDefinition": "shop:2"},
     "keeps": {"deployment": "service.currentServiceDeployment"}},
    waits("it waits before the first shift", **{"lifecycleHookDetails.-1.status": "AWAITING_ACTION",
                                                "targetServiceRevision.requestedProductionTrafficWeight": 0.0}),
    answers("it goes on", action="CONTINUE"),
    answers("an answer is good once", "InvalidParameterException", action="CONTINUE"),
    waits("it waits at ten percent", **{"lifecycleHookDetails.-1.status": "AWAITING_ACTION",
                                        "targetServiceRevision.requestedProductionTrafficWeight": 10.0}),
    answers("it goes on again"),
    waits("it waits at all", **{"lifecycleHookDetails.-1.status": "AWAITING_ACTION",
                                "targetServiceRevision.requestedProductionTrafficWeight": 100.0}),
    answers("it goes back", action="ROLLBACK"),
    waits("and is back", status="ROLLBACK_SUCCESSFUL"),

    {"step": "the third is deployed by a rolling update with a circuit breaker", "call": "update_service",
     "with": {**SHOP, "taskDefinition": "shop:3", "deploymentConfiguration": {
         "strategy": "ROLLING", "lifecycleHooks": [], "deploymentCircuitBreaker": {"enable": True, "rollback": True}}},
     "keeps": {"deployment": "service.currentServiceDeployment"}},
    waits("its tasks fail", **{"deploymentCircuitBreaker.failureCount": 2}),
    waits("and it goes back by itself", status="ROLLBACK_SUCCESSFUL"),
    {"step": "why they stopped can be found", "call": "list_tasks",
     "with": {**HERE, "serviceName": "shop", "desiredStatus": "STOPPED"}, "keeps": {"task": "taskArns.-1"}},
    {"step": "and read from them", "call": "describe_tasks", "with": {**HERE, "tasks": ["<task>"]}, "counts": {"tasks": 1}},

    {"step": "the second is deployed once more", "call": "update_service", "with": {**SHOP, "taskDefinition": "shop:2"},
     "keeps": {"deployment": "service.currentServiceDeployment"}},
    {"step": "an abort is none", "call": "stop_service_deployment", "wants": "InvalidParameterException",
     "with": {"serviceDeploymentArn": "<deployment>", "stopType": "ABORT"}},
    {"step": "it is stopped", "call": "stop_service_deployment",
     "with": {"serviceDeploymentArn": "<deployment>", "stopType": "ROLLBACK"}},
    waits("and goes back", status="ROLLBACK_SUCCESSFUL"),
]
