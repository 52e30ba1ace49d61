"""CodePipeline: a pipeline as the backend asks for it, and what must be refused. The form is that of table_lambda.py."""

NEVER = "00000000-0000-4000-8000-000000000000"
SHOP, BY = {"name": "shop"}, {"pipelineName": "shop"}
PROD = {**BY, "stageName": "Prod"}


def stage(name, category, provider, action):
    kind = {"category": category, "owner": "AWS", "provider": provider, "version": "1"}
    return {"name": name, "actions": [{"name": action, "actionTypeId": kind, "runOrder": 1}]}


PIPELINE = {
    "name": "shop", "roleArn": "arn:aws:iam::123456789012:role/pipeline", "pipelineType": "V2",
    "artifactStore": {"type": "S3", "location": "artifacts"},
    "stages": [stage("Source", "Source", "CodeCommit", "App"), stage("Prod", "Deploy", "CodeDeploy", "Deploy")],
}


def starts(step, wants="ok", careless=False, keeps=None, **more):
    return {"step": step, "call": "start_pipeline_execution", "with": {**SHOP, **more}, "wants": wants, "careless": careless,
            "keeps": keeps or {}}


def commit(value, action="App"):
    return [{"actionName": action, "revisionType": "COMMIT_ID", "revisionValue": value}]


def ends(step, execution, status):
    return {"step": step, "call": "get_pipeline_execution", "with": {**BY, "pipelineExecutionId": execution},
            "until": {"pipelineExecution.status": status}}


def back(step, wants="ok", **more):
    return {"step": step, "call": "rollback_stage", "with": {**PROD, **more}, "wants": wants}


STEPS = [
    {"step": "a pipeline that is not there has no state", "call": "get_pipeline_state", "with": SHOP,
     "wants": "PipelineNotFoundException"},
    {"step": "a pipeline is created", "call": "create_pipeline", "with": {"pipeline": PIPELINE}},
    {"step": "not twice", "call": "create_pipeline", "with": {"pipeline": PIPELINE}, "wants": "PipelineNameInUseException"},
    {"step": "a pipeline needs two stages", "call": "create_pipeline", "wants": "InvalidStructureException",
     "with": {"pipeline": {**PIPELINE, "name": "short", "stages": PIPELINE["stages"][:1]}}},
    {"step": "it is read", "call": "get_pipeline", "with": SHOP,
     "shows": {"pipeline.version": 1, "pipeline.pipelineType": "V2", "pipeline.executionMode": "SUPERSEDED"}},
    {"step": "it has an execution from the start", "call": "list_pipeline_executions", "with": BY,
     "counts": {"pipelineExecutionSummaries": 1}, "keeps": {"first": "pipelineExecutionSummaries.0.pipelineExecutionId"}},
    back("a stage where it has not been is not rolled back to it", "UnableToRollbackStageException",
         targetPipelineExecutionId="<first>"),
    ends("which succeeds", "<first>", "Succeeded"),
    {"step": "and is listed as having succeeded in the stage", "call": "list_pipeline_executions",
     "with": {**BY, "filter": {"succeededInStage": {"stageName": "Prod"}}}, "counts": {"pipelineExecutionSummaries": 1}},
    {"step": "the stages are told", "call": "get_pipeline_state", "with": SHOP,
     "shows": {"pipelineVersion": 1, "stageStates.1.latestExecution.pipelineExecutionId": "<first>",
               "stageStates.1.latestExecution.status": "Succeeded"}},

    starts("a source action that is not there takes nothing", "ValidationException", sourceRevisions=commit("v2", "Other")),
    starts("an override needs a revision", "ValidationException", careless=True,
           sourceRevisions=[{"actionName": "App", "revisionType": "COMMIT_ID"}]),
    starts("an execution of a revision is started", clientRequestToken="start-1", sourceRevisions=commit("v2"),
           keeps={"second": "pipelineExecutionId"}),
    {**starts("the same with the same token is the same", clientRequestToken="start-1", sourceRevisions=commit("v2")),
     "shows": {"pipelineExecutionId": "<second>"}},
    ends("it succeeds", "<second>", "Succeeded"),
    {"step": "it has taken the revision", "call": "list_pipeline_executions", "with": {**BY, "maxResults": 1},
     "shows": {"pipelineExecutionSummaries.0.sourceRevisions": [{"actionName": "App", "revisionId": "v2"}],
               "pipelineExecutionSummaries.0.executionType": "STANDARD"}, "keeps": {"page": "nextToken"}},
    {"step": "the next page has the other one", "call": "list_pipeline_executions",
     "with": {**BY, "maxResults": 1, "nextToken": "<page>"},
     "shows": {"pipelineExecutionSummaries.0.pipelineExecutionId": "<first>"}},

    back("a stage is not rolled back to an execution that never was", "PipelineExecutionNotFoundException",
         targetPipelineExecutionId=NEVER),
    {"step": "a stage that is not there is not rolled back", "call": "rollback_stage", "wants": "StageNotFoundException",
     "with": {**BY, "stageName": "Pord", "targetPipelineExecutionId": "<first>"}},
    {"step": "a source stage is not rolled back", "call": "rollback_stage", "wants": "UnableToRollbackStageException",
     "with": {**BY, "stageName": "Source", "targetPipelineExecutionId": "<first>"}},
    {**back("a stage is rolled back", targetPipelineExecutionId="<first>"), "keeps": {"back": "pipelineExecutionId"}},
    back("not while it runs", "UnableToRollbackStageException", targetPipelineExecutionId="<first>"),
    ends("the rollback succeeds", "<back>", "Succeeded"),
    {"step": "and says what it was", "call": "get_pipeline_execution", "with": {**BY, "pipelineExecutionId": "<back>"},
     "shows": {"pipelineExecution.executionType": "ROLLBACK",
               "pipelineExecution.rollbackMetadata": {"rollbackTargetPipelineExecutionId": "<first>"}}},
    back("a rollback is nothing to roll back to", "UnableToRollbackStageException", targetPipelineExecutionId="<back>"),

    starts("another is started", sourceRevisions=commit("v3"), keeps={"third": "pipelineExecutionId"}),
    {"step": "and stopped", "call": "stop_pipeline_execution",
     "with": {**BY, "pipelineExecutionId": "<third>", "reason": "a test"}},
    {"step": "not twice", "call": "stop_pipeline_execution", "with": {**BY, "pipelineExecutionId": "<third>"},
     "wants": "DuplicatedStopRequestException"},
    ends("it is stopped", "<third>", "Stopped"),
    {"step": "what is over is not stopped", "call": "stop_pipeline_execution",
     "with": {**BY, "pipelineExecutionId": "<third>"}, "wants": "PipelineExecutionNotStoppableException"},
    {"step": "what never was is not stopped", "call": "stop_pipeline_execution",
     "with": {**BY, "pipelineExecutionId": NEVER}, "wants": "PipelineExecutionNotStoppableException"},
]
