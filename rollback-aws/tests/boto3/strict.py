"""Checks raw answers of a server against AWS's own models, which come with botocore.

boto3 ignores what its models do not know; this does not: unknown members, missing ones, types, enums, patterns, ranges,
nulls, errors that the operation does not declare, and errors under another status than declared. It began as a proof of
concept of this project, and has no other source. The models are read from the installed botocore (Apache-2.0), and no
part of them is kept here.
"""

import json
import re
import xml.etree.ElementTree
from datetime import datetime

# Errors that AWS answers with though no operation declares them: those common to all services
# (https://docs.aws.amazon.com/awssupport/latest/APIReference/CommonErrors.html), and ValidationException, which Lambda
# was recorded to answer with to values outside of its model (localstack/localstack 8b9a79f, test_lambda_api.snapshot.json).
COMMON = {
    "AccessDeniedException", "ExpiredTokenException", "IncompleteSignature", "InternalFailure", "InvalidClientTokenId",
    "InvalidSignatureException", "MissingAuthenticationToken", "MissingAuthenticationTokenException", "ThrottlingException",
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


def read(answer):
    """The raw body of an answer as a value."""
    if "cbor" in (answer["headers"].get("content-type") or ""):
        import cbor2

        return cbor2.loads(answer["body"]) if answer["body"] else {}
    return json.loads(answer["body"] or b"{}")


def is_xml(answer):
    return "xml" in (answer["headers"].get("content-type") or "")


def tree(answer):
    """The raw body of an answer by the query protocol, without namespaces."""
    root = xml.etree.ElementTree.fromstring(answer["body"])
    for element in root.iter():
        element.tag = element.tag.split("}")[-1]
    return root


def value_of(shape, element):
    """What an element says, as the shape has it; what does not fit stays text."""
    kind, text = shape.type_name, element.text or ""
    if kind == "structure":
        members = {m.serialization.get("name") or name: m for name, m in shape.members.items()}
        return {it.tag: value_of(members[it.tag], it) if it.tag in members else it.text for it in element}
    if kind == "list":
        name = shape.member.serialization.get("name", "member")
        strange = [it.tag for it in element if it.tag != name]
        return f"a list with {strange[0]}" if strange else [value_of(shape.member, it) for it in element]
    try:
        if kind in ("integer", "long"):
            return int(text)
        if kind in ("double", "float"):
            return float(text)
        if kind == "boolean":
            return {"true": True, "false": False}.get(text, text)
        if kind == "timestamp":
            return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        pass
    return text


def read_query(operation, answer, found):
    """The result of an answer by the query protocol, and whether it is wrapped as it must be."""
    root, wrapper = tree(answer), operation.output_shape.serialization.get("resultWrapper")
    if root.tag != f"{operation.name}Response":
        found.append(f"{operation.name}: it is wrapped in {root.tag}")
    result = root.find(wrapper)
    if result is None:
        found.append(f"{operation.name}: there is no {wrapper} in it")
    return {} if result is None else value_of(operation.output_shape, result)


def faults(operation, answer):
    """What is wrong with a raw answer to an operation."""
    found, status = [], answer["status_code"]
    output = operation.output_shape
    if status < 300:
        if output is None or output.serialization.get("payload"):
            return found
        try:
            value = read_query(operation, answer, found) if is_xml(answer) else read(answer)
            check(output, value, operation.name, found)
        except (ValueError, xml.etree.ElementTree.ParseError) as e:
            found.append(f"{operation.name}: the body cannot be read: {e}")
        return found
    try:
        body = error_in(answer)
    except (ValueError, xml.etree.ElementTree.ParseError):
        return [f"{operation.name}: status {status} with a body that is no error of AWS: {answer['body'][:60]!r}"]
    code = code_of(body, answer["headers"])
    declared = {(e.metadata.get("error") or {}).get("code") or e.name: e for e in operation.error_shapes}
    declared.update({e.name: e for e in operation.error_shapes})
    if code in declared:
        wanted = (declared[code].metadata.get("error") or {}).get("httpStatusCode")
        if wanted and wanted != status:
            found.append(f"{operation.name}: {code} with status {status} instead of {wanted}")
        said = {name: value for name, value in body.items() if name not in ("__type", "message", "Message")}
        check_error(declared[code], said, operation.name, found)
    elif code not in COMMON:
        found.append(f"{operation.name}: the error {code!r} is not declared for it")
    return found


def error_in(answer):
    """The error of an answer, in the form that the JSON protocols have."""
    if not is_xml(answer):
        return read(answer)
    error = {it.tag: it.text for it in tree(answer).find("Error") or ()}
    return {"__type": error.get("Code"), "message": error.get("Message")}


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
