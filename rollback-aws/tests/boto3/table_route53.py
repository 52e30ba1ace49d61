"""Route 53: weighted records that are moved by deleting them as they were and creating them as they shall be.

What an entry is: see `table_lambda.py`. `shows` and `until` take dotted paths.
"""

NAME, MARKER = "api.strict.example.com.", "_rollback.api.strict.example.com."


def weighted(side, weight, **more):
    value = {"blue": "192.0.2.1", "green": "192.0.2.2"}[side]
    return {"Name": NAME, "Type": "A", "SetIdentifier": side, "Weight": weight, "TTL": 60,
            "ResourceRecords": [{"Value": value}], **more}


def marker(value):
    return {"Name": MARKER, "Type": "TXT", "TTL": 60, "ResourceRecords": [{"Value": f'"rollback={value}"'}]}


def changes(step, *edits, wants="ok", **more):
    batch = {"Comment": "rollback", "Changes": [{"Action": action, "ResourceRecordSet": record} for action, record in edits]}
    return {"step": step, "call": "change_resource_record_sets", "wants": wants,
            "with": {"HostedZoneId": "<zone>", "ChangeBatch": batch}, **more}


def lists(step, **shows):
    return {"step": step, "call": "list_resource_record_sets",
            "with": {"HostedZoneId": "<zone>", "StartRecordName": NAME, "StartRecordType": "A", "MaxItems": "2"},
            "shows": {f"ResourceRecordSets.{at}.{name}": value
                      for at, side in enumerate(("blue", "green"))
                      for name, value in (("SetIdentifier", side), ("Weight", shows[side]))}}


def moves(before, after, old, new):
    weights = [("DELETE", weighted("blue", before[0])), ("CREATE", weighted("blue", after[0])),
               ("DELETE", weighted("green", before[1])), ("CREATE", weighted("green", after[1]))]
    return [*weights, *([("DELETE", marker(old))] if old else []), ("CREATE", marker(new))]


STEPS = [
    {"step": "a zone is created", "call": "create_hosted_zone", "with": {"Name": "strict.example.com", "CallerReference": "<now>"},
     "keeps": {"zone": "HostedZone.Id"}, "shows": {"HostedZone.Name": "strict.example.com."}},
    {"step": "it is read", "call": "get_hosted_zone", "with": {"Id": "<zone>"}, "shows": {"HostedZone.Id": "<zone>"}},
    {"step": "a zone that is not there has no records", "call": "list_resource_record_sets", "wants": "NoSuchHostedZone",
     "with": {"HostedZoneId": "Z00000000000NOWHERE"}},
    changes("two weighted records are created", ("CREATE", weighted("blue", 255)), ("CREATE", weighted("green", 0)),
            keeps={"change": "ChangeInfo.Id"}, shows={"ChangeInfo.Status": "PENDING"}),
    lists("they are listed while they are PENDING", blue=255, green=0),
    {"step": "the change arrives", "call": "get_change", "with": {"Id": "<change>"}, "until": {"ChangeInfo.Status": "INSYNC"}},
    {"step": "a change that never was is not found", "call": "get_change", "with": {"Id": "C00000000000000NEVER"},
     "wants": "NoSuchChange"},
    changes("what is there is not created", ("CREATE", weighted("blue", 10)), wants="InvalidChangeBatch"),
    changes("a marker that never was is not deleted", ("DELETE", marker("never")), wants="InvalidChangeBatch"),
    changes("records are moved by a batch", *moves((255, 0), (95, 5), None, "one")),
    lists("and are where they shall be", blue=95, green=5),
    changes("what was seen before is not deleted any more", *moves((255, 0), (50, 50), None, "two"),
            wants="InvalidChangeBatch"),
    changes("nor with another marker", *moves((95, 5), (50, 50), "two", "three"), wants="InvalidChangeBatch"),
    lists("and nothing of it was done", blue=95, green=5),
    changes("they are moved back", *moves((95, 5), (100, 0), "one", "four")),
    lists("and are back", blue=100, green=0),
    changes("a weight is at most 255", ("UPSERT", weighted("green", 256)), wants="InvalidInput", careless=True),
    changes("a simple record does not stand beside weighted ones", wants="InvalidChangeBatch", *[(
        "CREATE", {"Name": NAME, "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.3"}]})]),
    changes("a record is of its zone", wants="InvalidChangeBatch", *[(
        "CREATE", {"Name": "api.example.org.", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.3"}]})]),
    changes("a weighted record has a set identifier", wants="InvalidInput", *[(
        "CREATE", {"Name": NAME, "Type": "AAAA", "Weight": 1, "TTL": 60, "ResourceRecords": [{"Value": "2001:db8::1"}]})]),
    changes("a health check that is not there is not used", ("UPSERT", weighted("green", 0, HealthCheckId="nowhere")),
            wants="NoSuchHealthCheck"),
    {"step": "nor is it read", "call": "get_health_check_status", "with": {"HealthCheckId": "nowhere"},
     "wants": "NoSuchHealthCheck"},
    {"step": "a zone with records is not deleted", "call": "delete_hosted_zone", "with": {"Id": "<zone>"},
     "wants": "HostedZoneNotEmpty"},
    changes("all is deleted", ("DELETE", weighted("blue", 100)), ("DELETE", weighted("green", 0)), ("DELETE", marker("four"))),
    {"step": "and then the zone", "call": "delete_hosted_zone", "with": {"Id": "<zone>"}},
]
