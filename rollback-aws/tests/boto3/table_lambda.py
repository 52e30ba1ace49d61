"""Lambda: every operation that the library calls, those that set the stage for them, and what must be refused.

An entry is one exchange: `call` and `with` what; what it `wants` (ok unless another is named) and what the answer `shows`, or
of what it holds so many (`counts`), or which part of it is the `same` as what was kept; what it `keeps` for later entries as `<name>`; `until` when it is repeated; `careless` when boto3 would not send it.
"""

import io
import zipfile


def code(text):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        # A date of its own, or the same code would be another zip in each run.
        archive.writestr(zipfile.ZipInfo("app.py", (2026, 1, 1, 0, 0, 0)), f"def handler(event, context):\n    return {text!r}\n")
    return packed.getvalue()


ROLE = "arn:aws:iam::123456789012:role/lambda"
HERE = {"FunctionName": "canaried"}
LIVE = {**HERE, "Name": "live"}


def weights(**shares):
    return {"AdditionalVersionWeights": {version[1:].replace("LATEST", "$LATEST"): w for version, w in shares.items()}}


def moves(step, wants="ok", **more):
    shows, keeps = more.pop("shows", {}), more.pop("keeps", {})
    careless = more.pop("careless", False)
    return {"step": step, "call": "update_alias", "with": {**LIVE, **more}, "wants": wants, "shows": shows, "keeps": keeps,
            "careless": careless}


STEPS = [
    {"step": "a function is created", "call": "create_function", "shows": {"FunctionName": "canaried", "Version": "$LATEST"},
     "with": {**HERE, "Role": ROLE, "Runtime": "python3.12", "Handler": "app.handler", "Code": {"ZipFile": code("one")}}},
    {"step": "it becomes Active", "call": "get_function_configuration", "with": HERE,
     "until": {"State": "Active", "LastUpdateStatus": "Successful"}},
    {"step": "it is read with its code", "call": "get_function", "with": HERE},
    {"step": "it is published", "call": "publish_version", "with": HERE, "shows": {"Version": "1"}},
    {"step": "its version becomes Active", "call": "get_function_configuration", "with": {**HERE, "Qualifier": "1"},
     "until": {"State": "Active"}, "shows": {"Version": "1"}},
    {"step": "unchanged code is published under its old number", "call": "publish_version", "with": HERE,
     "shows": {"Version": "1"}},
    {"step": "a stale upload is refused", "call": "update_function_code", "wants": "PreconditionFailedException",
     "with": {**HERE, "ZipFile": code("two"), "RevisionId": "00000000-0000-4000-8000-000000000000"}},
    {"step": "code is uploaded", "call": "update_function_code", "with": {**HERE, "ZipFile": code("two")},
     "keeps": {"sha": "CodeSha256"}},
    {"step": "the upload ends", "call": "get_function_configuration", "with": HERE,
     "until": {"State": "Active", "LastUpdateStatus": "Successful"}, "keeps": {"function": "RevisionId"},
     "shows": {"CodeSha256": "<sha>"}},
    {"step": "other code than what is there is not published", "call": "publish_version",
     "wants": "InvalidParameterValueException", "with": {**HERE, "CodeSha256": "bm90IGl0"}},
    {"step": "what was uploaded is published", "call": "publish_version", "shows": {"Version": "2"},
     "with": {**HERE, "CodeSha256": "<sha>", "RevisionId": "<function>"}},
    {"step": "the second version becomes Active", "call": "get_function_configuration",
     "with": {**HERE, "Qualifier": "2"}, "until": {"State": "Active"}},
    {"step": "a version that was never published is not there", "call": "get_function_configuration",
     "with": {**HERE, "Qualifier": "10"}, "wants": "ResourceNotFoundException"},
    {"step": "the versions are listed", "call": "list_versions_by_function", "with": HERE, "counts": {"Versions": 3}},

    {"step": "an alias is created", "call": "create_alias", "with": {**LIVE, "FunctionVersion": "1"},
     "shows": {"FunctionVersion": "1", "RoutingConfig": None}, "keeps": {"first": "RevisionId"}},
    {"step": "an alias is not created twice", "call": "create_alias", "with": {**LIVE, "FunctionVersion": "1"},
     "wants": "ResourceConflictException"},
    {"step": "an alias is not named as a version", "call": "create_alias", "wants": "ValidationException",
     "with": {**HERE, "Name": "7", "FunctionVersion": "1"}, "careless": True},
    {"step": "an alias needs a version", "call": "create_alias", "with": {**HERE, "Name": "nowhere"},
     "wants": "ValidationException", "careless": True},
    {"step": "an alias may be at $LATEST", "call": "create_alias",
     "with": {**HERE, "Name": "edge", "FunctionVersion": "$LATEST"}, "shows": {"FunctionVersion": "$LATEST"}},
    {"step": "who is at $LATEST is listed", "call": "list_aliases", "with": {**HERE, "FunctionVersion": "$LATEST"},
     "counts": {"Aliases": 1}},
    {"step": "it is deleted", "call": "delete_alias", "with": {**HERE, "Name": "edge"}},
    {"step": "an alias is read", "call": "get_alias", "with": LIVE, "shows": {"FunctionVersion": "1", "RoutingConfig": None}},
    {"step": "a missing alias is not there", "call": "get_alias", "with": {**HERE, "Name": "dead"},
     "wants": "ResourceNotFoundException"},

    moves("a tenth goes to the second version", RevisionId="<first>", FunctionVersion="1", RoutingConfig=weights(v2=0.1),
          shows={"FunctionVersion": "1", "RoutingConfig": weights(v2=0.1)}, keeps={"second": "RevisionId"}),
    moves("a spent RevisionId is refused", "PreconditionFailedException", RevisionId="<first>", FunctionVersion="1",
          RoutingConfig=weights()),
    moves("a RevisionId that never was is refused", "PreconditionFailedException",
          RevisionId="00000000-0000-4000-8000-000000000000", FunctionVersion="1", RoutingConfig=weights()),
    {"step": "and nothing has moved", "call": "get_alias", "with": LIVE,
     "shows": {"FunctionVersion": "1", "RoutingConfig": weights(v2=0.1), "RevisionId": "<second>"}},
    moves("two weights are one too many", "InvalidParameterValueException", RoutingConfig=weights(v2=0.1, v3=0.1)),
    moves("a weight is at most 1", "ValidationException", RoutingConfig=weights(v2=2.0), careless=True),
    moves("a weight is at least 0", "ValidationException", RoutingConfig=weights(v2=-1.0), careless=True),
    moves("a version is not weighted beside itself", "InvalidParameterValueException", FunctionVersion="1",
          RoutingConfig=weights(v1=0.1)),
    moves("$LATEST takes no weights", "InvalidParameterValueException", FunctionVersion="$LATEST",
          RoutingConfig=weights(v1=0.1)),
    moves("$LATEST has no weight", "ValidationException", RoutingConfig=weights(vLATEST=0.1), careless=True),
    moves("a missing version has no weight", "ResourceNotFoundException", RoutingConfig=weights(v10=0.1)),
    moves("an alias is not moved to a missing version", "ResourceNotFoundException", FunctionVersion="10",
          RoutingConfig=weights()),
    {"step": "a missing alias is not moved", "call": "update_alias", "with": {**HERE, "Name": "dead", "FunctionVersion": "1"},
     "wants": "ResourceNotFoundException"},
    {"step": "a version in use is not deleted", "call": "delete_function", "with": {**HERE, "Qualifier": "2"},
     "wants": "ResourceConflictException"},
    {"step": "an alias with weights has no provisioned concurrency", "call": "put_provisioned_concurrency_config",
     "with": {**HERE, "Qualifier": "live", "ProvisionedConcurrentExecutions": 1}, "wants": "InvalidParameterValueException"},
    {"step": "and none of this has moved it", "call": "get_alias", "with": LIVE, "keeps": {"second": "RevisionId"},
     "shows": {"FunctionVersion": "1", "RoutingConfig": weights(v2=0.1)}},
    moves("a write that changes nothing is taken", RevisionId="<second>", FunctionVersion="1",
          RoutingConfig=weights(v2=0.1), keeps={"third": "RevisionId"}),
    moves("and has spent its RevisionId", "PreconditionFailedException", RevisionId="<second>", FunctionVersion="1",
          RoutingConfig=weights()),
    moves("all goes to the second version, which stays the other one", RevisionId="<third>", FunctionVersion="1",
          RoutingConfig=weights(v2=1.0), shows={"FunctionVersion": "1", "RoutingConfig": weights(v2=1.0)},
          keeps={"fourth": "RevisionId"}),
    moves("promotion sets the version and clears the weights", RevisionId="<fourth>", FunctionVersion="2",
          RoutingConfig=weights(), shows={"FunctionVersion": "2", "RoutingConfig": None}),

    {"step": "without provisioned concurrency there is none", "call": "get_provisioned_concurrency_config",
     "with": {**HERE, "Qualifier": "live"}, "wants": "ProvisionedConcurrencyConfigNotFoundException"},
    {"step": "concurrency is provisioned", "call": "put_provisioned_concurrency_config",
     "with": {**HERE, "Qualifier": "live", "ProvisionedConcurrentExecutions": 1}, "shows": {"Status": "IN_PROGRESS"}},
    {"step": "it is read", "call": "get_provisioned_concurrency_config", "with": {**HERE, "Qualifier": "live"}},
    {"step": "all of it is listed", "call": "list_provisioned_concurrency_configs", "with": HERE},
    {"step": "the version of such an alias has none of its own", "call": "put_provisioned_concurrency_config",
     "with": {**HERE, "Qualifier": "2", "ProvisionedConcurrentExecutions": 1}, "wants": "ResourceConflictException"},
    moves("moved, such an alias is held by Lambda's own weights", FunctionVersion="1", RoutingConfig=weights(),
          shows={"FunctionVersion": "1", "RoutingConfig": weights(v2=1.0)}),
    {"step": "it is taken away", "call": "delete_provisioned_concurrency_config", "with": {**HERE, "Qualifier": "live"}},

    {"step": "a call through the alias is answered by its version", "call": "invoke",
     "with": {**HERE, "Qualifier": "1", "Payload": b"{}"}, "shows": {"StatusCode": 200, "ExecutedVersion": "1"}},
    {"step": "the configuration is changed", "call": "update_function_configuration",
     "with": {**HERE, "Description": "the one that is canaried"}, "shows": {"Description": "the one that is canaried"}},
    {"step": "a function needs a role", "call": "create_function", "careless": True, "wants": "ValidationException",
     "with": {"FunctionName": "another", "Code": {"ZipFile": code("one")}}},
    {"step": "a function that is not there has no aliases", "call": "list_aliases", "with": {"FunctionName": "nobody"},
     "wants": "ResourceNotFoundException"},
    {"step": "the alias is deleted", "call": "delete_alias", "with": LIVE},
    {"step": "the function is deleted", "call": "delete_function", "with": HERE},
]
