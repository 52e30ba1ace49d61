"""Drives a server by boto3 through the exchanges of the table, and checks each raw answer against AWS's own models.

    python run.py ENDPOINT SERVICE…      one line of JSON an exchange, on standard output

A service is as `ecs`, `cloudwatch/smithy-rpc-v2-cbor` with another protocol than boto3's own choice, or `ecs:BASICS` with another
list of its table than `STEPS`.

A line says what came (`outcome`: ok, or the error's code), what was shown of it, whether that is what the table wants
(`as_wanted`), and what is wrong with the answer by AWS's models (`faults`).
"""

import importlib
import json
import sys
import time

import boto3
import botocore.model
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

import strict


# In the order in which botocore takes them.
PROTOCOLS = tuple(botocore.model.PRIORITY_ORDERED_SUPPORTED_PROTOCOLS)


def clients(endpoint, service, protocol):
    """A client as everybody has it, and one that sends bad input without a look."""
    botocore.model.PRIORITY_ORDERED_SUPPORTED_PROTOCOLS = (protocol, *PROTOCOLS) if protocol else PROTOCOLS
    made = []
    for checks in (True, False):
        config = Config(retries={"total_max_attempts": 1}, parameter_validation=checks, read_timeout=20)
        made.append(boto3.client(
            service, endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="AKIDBOTO3",
            aws_secret_access_key="not-a-secret", config=config,
        ))
    return made


def main(endpoint, services):
    for service in services:
        service, _, steps = service.partition(":")
        service, _, protocol = service.partition("/")
        table = importlib.import_module(f"table_{service}")
        good, careless = clients(endpoint, service, protocol)
        seen = []
        for client in (good, careless):
            strict.attach(client, lambda operation, faults: seen.append((operation, faults)))
        kept = {"now": str(time.time())}
        for step in getattr(table, steps or "STEPS"):
            seen.clear()
            client = careless if step.get("careless") else good
            answer, outcome = call(client, step, kept)
            wanted = step.get("wants", "ok")
            shown = {path: at(answer, path) for path in step.get("shows", {})}
            same = {f"same {path}": at(answer, path) == fill(value, kept) for path, value in step.get("same", {}).items()}
            counted = {path: len(at(answer, path) or []) for path in step.get("counts", {})}
            for name, member in step.get("keeps", {}).items():
                kept[name] = at(answer, member)
            print(json.dumps({
                "step": f"{protocol}: {step['step']}" if protocol else step["step"],
                "operations": sorted({operation for operation, _ in seen}),
                "outcome": outcome,
                "shown": {**shown, **counted, **same},
                "as_wanted": outcome == wanted and shown == fill(step.get("shows", {}), kept)
                and counted == step.get("counts", {}) and all(same.values()),
                "wanted": wanted,
                "faults": sorted({fault for _, faults in seen for fault in faults}),
            }, default=str), flush=True)


def call(client, step, kept):
    """Calls once; or, where the table waits for something, until it is there or ten seconds are over."""
    until = step.get("until", {})
    over = time.monotonic() + 10
    while True:
        try:
            answer = getattr(client, step["call"])(**fill(step.get("with", {}), kept))
        except ClientError as e:
            return {}, e.response["Error"].get("Code") or "an error without a code"
        except BotoCoreError as e:
            return {}, f"{type(e).__name__}: {e}"
        except Exception as e:  # boto3 stumbles over what no model has: that is a finding, not the end of the run.
            return {}, f"boto3 cannot read the answer: {type(e).__name__}"
        if all(at(answer, path) == value for path, value in until.items()):
            return answer, "ok"
        if time.monotonic() > over:
            return answer, "waited in vain"
        time.sleep(0.1)


def at(answer, path):
    """What is there: `RevisionId`, or `MetricAlarms.0.AlarmArn`; the last of a list is `-1`."""
    for word in path.split("."):
        if isinstance(answer, list):
            answer = answer[int(word)] if -len(answer) <= int(word) < len(answer) else None
        else:
            answer = (answer or {}).get(word)
    return answer


def fill(value, kept):
    """Puts what was kept of earlier answers in place of its name: `{"RevisionId": "<revision>"}`."""
    if isinstance(value, dict):
        return {name: fill(member, kept) for name, member in value.items()}
    if isinstance(value, list):
        return [fill(member, kept) for member in value]
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        return kept.get(value[1:-1])
    return value


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
