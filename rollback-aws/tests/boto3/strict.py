"""Checks raw answers of a server against AWS's own models, which come with botocore.

boto3 ignores what its models do not know; this does not: unknown members, missing ones, types, enums, patterns, ranges,
nulls, errors that the operation does not declare, and errors under another status than declared. It began as a proof of
concept of this project, and has no other source. The models are read from the installed botocore (Apache-2.0), and no
part of them is kept here.
"""

import datetime
import email.utils
import json
import re
import xml.etree.ElementTree

# Errors that AWS answers with though no operation declares them: those common to all services
# (https://docs.aws.amazon.com/awssupport/latest/APIReference/CommonErrors.html), and ValidationException, which Lambda
# was recorded to answer with to values outside of its model (localstack/localstack 8b9a79f, test_lambda_api.snapshot.json). Of
# S3's own list for all its operations (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html) what is met here.
COMMON = {
    "AccessDenied", "AccessDeniedException", "ExpiredTokenException", "IncompleteSignature", "InternalFailure", "InvalidClientTokenId",
    "InvalidSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "NoSuchBucket", "Throttling", "ThrottlingException",
    "UnrecognizedClientException", "ValidationException", "ValidationError",
}

# What AWS says though its model does not have it: these two of a stack are told among its events as well
# (https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/view-stack-events.html).
BEYOND = {"ResourceStatus": {"UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"}}


def check(shape, value, path, found):
    """Puts down in `found` what `value` has that the shape does not allow."""
    kind, limits = shape.type_name, shape.metadata
    if value is None:
        found.append(f"{path}: null, where AWS leaves the member out")
    elif kind == "structure":
        if not isinstance(value, dict):
            found.append(f"{path}: not an object: {value!r}")
            return
        body = {m.serialization.get("name") or name: m for name, m in shape.members.items() if in_body(m)}
        for name, member in value.items():
            if name in body:
                check(body[name], member, f"{path}.{name}", found)
            else:
                found.append(f"{path}.{name}: unknown member of {shape.name}")
        for name in shape.required_members:
            if in_body(shape.members[name]) and name not in value:
                found.append(f"{path}: {name} is required and missing")
    elif kind == "list":
        if not isinstance(value, list):
            found.append(f"{path}: not a list: {value!r}")
            return
        for at, member in enumerate(value):
            check(shape.member, member, f"{path}[{at}]", found)
        within(limits, len(value), path, found)
    elif kind == "map":
        if not isinstance(value, dict):
            found.append(f"{path}: not a map: {value!r}")
            return
        for key, member in value.items():
            check(shape.key, key, f"{path}.{key}", found)
            check(shape.value, member, f"{path}[{key}]", found)
        within(limits, len(value), path, found)
    elif kind == "string":
        if not isinstance(value, str):
            found.append(f"{path}: not a string: {value!r}")
            return
        if shape.enum and value not in shape.enum and value not in BEYOND.get(shape.name, ()):
            found.append(f"{path}: {value!r} is none of {shape.name}")
        # Two patterns of CloudWatch's are written for Java.
        if "pattern" in limits and "\\p{" not in limits["pattern"] and not re.fullmatch(limits["pattern"], value):
            found.append(f"{path}: {value!r} does not match {limits['pattern']}")
        within(limits, len(value), path, found)
    elif kind in ("integer", "long"):
        if isinstance(value, bool) or not isinstance(value, int):
            found.append(f"{path}: not a whole number: {value!r}")
            return
        within(limits, value, path, found)
    elif kind in ("double", "float"):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            found.append(f"{path}: not a number: {value!r}")
            return
        within(limits, value, path, found)
    elif kind == "boolean" and not isinstance(value, bool):
        found.append(f"{path}: not a boolean: {value!r}")
    elif kind == "timestamp" and not is_time(value):
        found.append(f"{path}: not a time: {value!r}")


def in_body(member):
    return "location" not in member.serialization


def is_time(value):
    return hasattr(value, "timestamp") or (isinstance(value, (int, float)) and not isinstance(value, bool))


def within(limits, size, path, found):
    if "min" in limits and size < limits["min"]:
        found.append(f"{path}: {size} is less than {limits['min']}")
    if "max" in limits and size > limits["max"]:
        found.append(f"{path}: {size} is more than {limits['max']}")


def read(answer, operation=None):
    """The raw body of an answer as a value."""
    if not answer["body"] and operation is not None and not has_body(operation):
        return {}
    if "xml" in (answer["headers"].get("content-type") or ""):
        return read_xml(answer["body"], operation)
    if "cbor" in (answer["headers"].get("content-type") or ""):
        import cbor2

        return cbor2.loads(answer["body"]) if answer["body"] else {}
    return json.loads(answer["body"] or b"{}")


def has_body(operation):
    """Whether an operation that succeeds answers with one: of S3 many have all they say in headers."""
    rest_xml = operation.service_model.metadata["protocol"] == "rest-xml"
    return not rest_xml or any(in_body(member) for member in operation.output_shape.members.values())


def check_headers(operation, headers, found):
    """What the headers of an answer say, by the model."""
    for name, member in operation.output_shape.members.items():
        text = headers.get(member.serialization.get("name")) if member.serialization.get("location") == "header" else None
        if text is None:
            continue
        try:
            if member.type_name in ("integer", "long"):
                text = int(text)
            elif member.type_name == "boolean":
                text = {"true": True, "false": False}[text]
            elif member.type_name == "timestamp":
                text = email.utils.parsedate_to_datetime(text)
        except (ValueError, KeyError):
            pass
        check(member, text, f"{operation.name}.{name}", found)


def read_xml(body, operation):
    """The output of an operation, or an error, as JSON would have it."""
    try:
        root = xml.etree.ElementTree.fromstring(body)
    except xml.etree.ElementTree.ParseError as e:
        raise ValueError(e) from e
    if bare(root) in ("Error", "ErrorResponse"):
        # S3's has no wrapper.
        error = {bare(child): child.text or "" for child in (root if bare(root) == "Error" else root.find("{*}Error") or ())}
        error.pop("Type", None)
        return {"code": error.pop("Code", ""), **error}
    if operation is None or bare(root) != f"{operation.name}Response":
        raise ValueError(f"<{bare(root)}> answers another operation")
    if operation.service_model.metadata["protocol"] == "rest-xml":
        return typed(operation.output_shape, root)
    wrapper = operation.output_shape and operation.output_shape.serialization.get("resultWrapper")
    result = root.find(f"{{*}}{wrapper}") if wrapper else None
    return typed(operation.output_shape, result) if result is not None else {}


def bare(element):
    return element.tag.rpartition("}")[2]


def typed(shape, element):
    """What an element says by the model; what the model does not have is put in all the same, to be found."""
    if shape.type_name == "structure":
        members = {m.serialization.get("name") or name: m for name, m in shape.members.items() if in_body(m)}
        value = {}
        for child in element:
            name = bare(child)
            value[name] = typed(members[name], child) if name in members else child.text
        return value
    if shape.type_name == "list":
        wanted = shape.member.serialization.get("name") or "member"
        return [typed(shape.member, child) if bare(child) == wanted else {"<%s>" % bare(child): "no member"} for child in element]
    if shape.type_name == "map":
        entries = ({bare(part): part.text or "" for part in entry} for entry in element)
        return {entry.get("key"): entry.get("value") for entry in entries}
    text = element.text or ""
    try:
        if shape.type_name in ("integer", "long"):
            return int(text)
        if shape.type_name in ("double", "float"):
            return float(text)
        if shape.type_name == "boolean":
            return {"true": True, "false": False}[text]
        if shape.type_name == "timestamp":
            return datetime.datetime.fromisoformat(text)
    except (ValueError, KeyError):
        pass
    return text


def faults(operation, answer):
    """What is wrong with a raw answer to an operation."""
    found, status = [], answer["status_code"]
    output = operation.output_shape
    if status < 300:
        if output is None or output.serialization.get("payload"):
            return found
        check_headers(operation, answer["headers"], found)
        try:
            check(output, read(answer, operation), operation.name, found)
        except ValueError as e:
            found.append(f"{operation.name}: the body cannot be read: {e}")
        return found
    if operation.http.get("method") == "HEAD":
        return [f"{operation.name}: status {status} with a body"] if answer["body"] else found
    try:
        body = read(answer)
    except ValueError:
        return [f"{operation.name}: status {status} with a body that is no error of AWS: {answer['body'][:60]!r}"]
    code = code_of(body, answer["headers"])
    declared = {(e.metadata.get("error") or {}).get("code") or e.name: e for e in operation.error_shapes}
    declared.update({e.name: e for e in operation.error_shapes})
    if code in declared:
        wanted = (declared[code].metadata.get("error") or {}).get("httpStatusCode")
        if wanted and wanted != status:
            found.append(f"{operation.name}: {code} with status {status} instead of {wanted}")
        said = {name: value for name, value in body.items() if name not in ("__type", "code", "message", "Message")}
        check_error(declared[code], said, operation.name, found)
    elif code not in COMMON:
        found.append(f"{operation.name}: the error {code!r} is not declared for it")
    return found


def check_error(shape, said, path, found):
    for name, value in said.items():
        if name in shape.members:
            check(shape.members[name], value, f"{path}.{name}", found)
        else:
            found.append(f"{path}.{name}: unknown member of {shape.name}")


def code_of(body, headers):
    code = headers.get("x-amzn-errortype") or body.get("__type") or body.get("code") or ""
    return code.split("#")[-1].split(":")[0]


def attach(client, tell):
    """Calls `tell(operation, faults)` for each answer that the client gets."""
    model = client.meta.service_model

    def before(model, context, **_):
        context["checked_operation"] = model.name

    def received(response_dict, context, **_):
        if response_dict is not None:
            name = context["checked_operation"]
            tell(name, faults(model.operation_model(name), response_dict))

    client.meta.events.register("before-call.*.*", before)
    client.meta.events.register("response-received.*.*", received)
