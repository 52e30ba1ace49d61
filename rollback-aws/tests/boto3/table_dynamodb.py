"""DynamoDB: the conditional writes and transactions that the store is made of, their limits, and what must be refused.

What an entry is: see `table_lambda.py`. `shows` and `until` take dotted paths.
"""

T = {"TableName": "strict-table"}


def key(sk):
    return {"pk": {"S": "p"}, "sk": {"S": sk}}


def item(sk, **more):
    return {**key(sk), **more}


def gets(step, sk, wanted):
    shows = {"Item": wanted} if wanted is None else {f"Item.{name}": value for name, value in wanted.items()}
    return {"step": step, "call": "get_item", "with": {**T, "Key": key(sk), "ConsistentRead": True}, "shows": shows}


def puts(step, wants="ok", careless=False, **more):
    return {"step": step, "call": "put_item", "with": {**T, **more}, "wants": wants, "careless": careless}


def updates(step, wants="ok", shows=None, **more):
    return {"step": step, "call": "update_item", "with": {**T, **more}, "wants": wants, "shows": shows or {}}


def transacts(step, *actions, wants="ok", **more):
    actions = [{kind: {**T, **what}} for kind, what in actions]
    return {"step": step, "call": "transact_write_items", "with": {"TransactItems": actions, **more}, "wants": wants}


FRESH = "attribute_not_exists(pk)"
# What is left of 400 KB beside the names, and the key of this item.
FULL = 400 * 1024 - len("pk" "p" "sk" "large" "body")
N1, N2 = {"N": "1"}, {"N": "2"}
# In 2100: what has expired may be swept at any time.
LATER = {"N": "4102444800"}

STEPS = [
    {"step": "a table is created", "call": "create_table", "shows": {"TableDescription.TableName": "strict-table"},
     "with": {**T, "BillingMode": "PAY_PER_REQUEST",
              "AttributeDefinitions": [{"AttributeName": n, "AttributeType": "S"} for n in ("pk", "sk")],
              "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}]}},
    {"step": "it becomes ACTIVE", "call": "describe_table", "with": T, "until": {"Table.TableStatus": "ACTIVE"},
     "shows": {"Table.KeySchema.0.AttributeName": "pk", "Table.KeySchema.1.AttributeName": "sk",
               "Table.BillingModeSummary.BillingMode": "PAY_PER_REQUEST"}},
    {"step": "it is not created twice", "call": "create_table", "wants": "ResourceInUseException",
     "with": {**T, "BillingMode": "PAY_PER_REQUEST", "AttributeDefinitions": [{"AttributeName": "pk", "AttributeType": "S"}],
              "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}]}},
    {"step": "a table has a time to live", "call": "update_time_to_live",
     "with": {**T, "TimeToLiveSpecification": {"Enabled": True, "AttributeName": "expires"}}},
    {"step": "it is read", "call": "describe_time_to_live", "with": T,
     "shows": {"TimeToLiveDescription.AttributeName": "expires"}},
    {"step": "a missing table is not described", "call": "describe_table", "with": {"TableName": "not-there"},
     "wants": "ResourceNotFoundException"},
    {"step": "a missing table has no items", "call": "get_item", "with": {"TableName": "not-there", "Key": key("a")},
     "wants": "ResourceNotFoundException"},

    puts("an item is put if there is none", Item=item("a", serial=N1, driver={"S": "d"}), ConditionExpression=FRESH),
    puts("and not again", "ConditionalCheckFailedException", Item=item("a", serial=N2), ConditionExpression=FRESH,
         ReturnValuesOnConditionCheckFailure="ALL_OLD"),
    gets("it is as it was put", "a", item("a", serial=N1, driver={"S": "d"})),
    puts("the right serial is let through", Item=item("a", serial=N2, driver={"S": "d"}),
         ConditionExpression="#serial = :serial AND #driver = :driver AND attribute_not_exists(#gone)",
         ExpressionAttributeNames={"#serial": "serial", "#driver": "driver", "#gone": "gone"},
         ExpressionAttributeValues={":serial": N1, ":driver": {"S": "d"}}),
    puts("a spent serial is not", "ConditionalCheckFailedException", Item=item("a", serial=N1),
         ConditionExpression="serial = :serial", ExpressionAttributeValues={":serial": N1}),
    puts("a number is no text", "ConditionalCheckFailedException", Item=item("a", serial=N1),
         ConditionExpression="serial = :serial", ExpressionAttributeValues={":serial": {"S": "2"}}),
    puts("what is missing differs from everything", Item=item("a", serial=N2),
         ConditionExpression="nothing <> :serial AND NOT nothing = :serial AND NOT nothing < :serial",
         ExpressionAttributeValues={":serial": N1}),
    puts("numbers are compared as numbers", Item=item("a", serial=N2),
         ConditionExpression="serial < :ten AND serial BETWEEN :one AND :ten AND serial IN (:one, :two)",
         ExpressionAttributeValues={":one": N1, ":two": N2, ":ten": {"N": "10"}}),
    puts("OR binds less than AND", Item=item("a", serial=N2, body={"S": "abc"}),
         ConditionExpression="serial = :two OR serial = :one AND serial = :ten",
         ExpressionAttributeValues={":one": N1, ":two": N2, ":ten": {"N": "10"}}),
    puts("functions are known", Item=item("a", serial=N2),
         ConditionExpression="begins_with(body, :a) AND contains(body, :b) AND size(body) = :three AND attribute_type(body, :s)",
         ExpressionAttributeValues={":a": {"S": "ab"}, ":b": {"S": "bc"}, ":three": {"N": "3"}, ":s": {"S": "S"}}),
    puts("a reserved word needs another name", "ValidationException", Item=item("a"),
         ConditionExpression="format = :one", ExpressionAttributeValues={":one": N1}),
    puts("a value that is used for nothing is refused", "ValidationException", Item=item("a"), ConditionExpression=FRESH,
         ExpressionAttributeValues={":one": N1}),
    puts("a name that is used for nothing is refused", "ValidationException", Item=item("a"), ConditionExpression=FRESH,
         ExpressionAttributeNames={"#one": "one"}),
    puts("a value that is not given is refused", "ValidationException", Item=item("a"),
         ConditionExpression="serial = :one"),
    puts("a condition is one", "ValidationException", Item=item("a"), ConditionExpression="serial = = :one",
         ExpressionAttributeValues={":one": N1}),
    puts("an item has its whole key", "ValidationException", Item={"pk": {"S": "p"}}),
    puts("a key is of its type", "ValidationException", Item={"pk": {"S": "p"}, "sk": N1}),
    puts("a key is not empty", "ValidationException", Item={"pk": {"S": "p"}, "sk": {"S": ""}}),
    puts("other text may be empty", Item=item("empty", body={"S": ""})),
    gets("and comes back so", "empty", {"body": {"S": ""}}),
    puts("an item has up to 400 KB", Item=item("large", body={"S": "x" * FULL})),
    puts("and not a byte more", "ValidationException", Item=item("large", body={"S": "x" * (FULL + 1)})),
    gets("none of this has changed it", "a", item("a", serial=N2)),
    {"step": "a key alone is asked for, and nothing else", "call": "get_item", "wants": "ValidationException",
     "with": {**T, "Key": item("a", serial=N1)}},
    {"step": "what is not there has no item", "call": "get_item", "with": {**T, "Key": key("none")},
     "shows": {"Item": None}},

    updates("a beat is made by the first update", Key=key("beat"), UpdateExpression="SET expires = :e ADD beats :one",
            ExpressionAttributeValues={":e": LATER, ":one": N1}, ReturnValues="ALL_NEW",
            shows={"Attributes": item("beat", expires=LATER, beats=N1)}),
    updates("and rises with the next", Key=key("beat"), UpdateExpression="SET expires = :e ADD beats :one",
            ExpressionAttributeValues={":e": LATER, ":one": N1}, ReturnValues="ALL_NEW",
            shows={"Attributes": item("beat", expires=LATER, beats=N2)}),
    updates("a sign is left for who has beaten", Key=key("beat"), UpdateExpression="SET #sign = :sign",
            ConditionExpression="attribute_exists(pk)", ExpressionAttributeNames={"#sign": "sign"},
            ExpressionAttributeValues={":sign": {"S": "s"}}),
    updates("and for nobody else", "ConditionalCheckFailedException", Key=key("nobody"), UpdateExpression="SET #sign = :sign",
            ConditionExpression="attribute_exists(pk)", ExpressionAttributeNames={"#sign": "sign"},
            ExpressionAttributeValues={":sign": {"S": "s"}}),
    updates("an update without an effect is taken", "ConditionalCheckFailedException", Key=key("nobody"),
            ConditionExpression="attribute_exists(pk)"),
    updates("an attribute of the key is not changed", "ValidationException", Key=key("beat"),
            UpdateExpression="SET sk = :s", ExpressionAttributeValues={":s": {"S": "s"}}),
    updates("nothing is set twice", "ValidationException", Key=key("beat"), UpdateExpression="SET n = :one, n = :two",
            ExpressionAttributeValues={":one": N1, ":two": N2}),
    updates("what is added to is a number", "ValidationException", Key=key("beat"), UpdateExpression="ADD #sign :one",
            ExpressionAttributeNames={"#sign": "sign"}, ExpressionAttributeValues={":one": N1}),
    updates("a map without its place is not filled", "ValidationException", Key=key("beat"),
            UpdateExpression="SET requests.#n = :one", ExpressionAttributeNames={"#n": "1"},
            ExpressionAttributeValues={":one": N1}),
    puts("an open rollout", Item=item("open", id={"S": "r"}, asked={"N": "0"}, requests={"M": {}})),
    updates("a question is put under its number", Key=key("open"),
            UpdateExpression="SET asked = :asked, requests.#new = :new", ConditionExpression="id = :id AND asked = :seen",
            ExpressionAttributeNames={"#new": "1"}, ReturnValues="ALL_NEW",
            ExpressionAttributeValues={":asked": N1, ":seen": {"N": "0"}, ":id": {"S": "r"},
                                       ":new": {"M": {"text": {"S": "abort"}}}},
            shows={"Attributes.requests": {"M": {"1": {"M": {"text": {"S": "abort"}}}}}, "Attributes.asked": N1}),
    updates("another one, while the first is forgotten", Key=key("open"),
            UpdateExpression="SET asked = asked + :one, requests.#new = :new REMOVE requests.#old0",
            ConditionExpression="id = :id AND asked = :one", ExpressionAttributeNames={"#new": "2", "#old0": "1"},
            ExpressionAttributeValues={":one": N1, ":id": {"S": "r"}, ":new": {"S": "pause"}}, ReturnValues="ALL_NEW",
            shows={"Attributes.requests": {"M": {"2": {"S": "pause"}}}, "Attributes.asked": N2}),
    updates("what is forgotten already is forgotten", Key=key("open"), UpdateExpression="REMOVE requests.#old0, requests.#old1",
            ConditionExpression="id = :id", ExpressionAttributeNames={"#old0": "2", "#old1": "7"},
            ExpressionAttributeValues={":id": {"S": "r"}}, ReturnValues="ALL_NEW",
            shows={"Attributes.requests": {"M": {}}}),
    updates("a list is filled from a default", Key=key("list"), ReturnValues="ALL_NEW",
            UpdateExpression="SET l = list_append(if_not_exists(l, :none), :one)",
            ExpressionAttributeValues={":none": {"L": []}, ":one": {"L": [N1]}}, shows={"Attributes.l": {"L": [N1]}}),
    {"step": "nothing is deleted if it is not so", "call": "delete_item", "wants": "ConditionalCheckFailedException",
     "with": {**T, "Key": key("list"), "ConditionExpression": "attribute_not_exists(l)"}},
    {"step": "it is deleted", "call": "delete_item", "with": {**T, "Key": key("list"), "ReturnValues": "ALL_OLD"},
     "shows": {"Attributes": item("list", l={"L": [N1]})}},

    transacts("all of a transaction is done", ("Put", {"Item": item("r1", serial=N1), "ConditionExpression": FRESH}),
              ("Put", {"Item": item("r2", serial=N1)}),
              ("Update", {"Key": key("open"), "UpdateExpression": "SET #what = :to", "ConditionExpression": "#id = :id",
                          "ExpressionAttributeNames": {"#what": "driver", "#id": "id"},
                          "ExpressionAttributeValues": {":to": {"S": "d2"}, ":id": {"S": "r"}}}),
              ("ConditionCheck", {"Key": key("a"), "ConditionExpression": "attribute_exists(pk)"}),
              ("Delete", {"Key": key("empty")})),
    gets("its update is there", "open", {"driver": {"S": "d2"}}),
    gets("and what it deleted is not", "empty", None),
    transacts("nothing of a transaction is done", ("Put", {"Item": item("r3", serial=N1)}),
              ("Put", {"Item": item("r1", serial=N2), "ConditionExpression": FRESH,
                       "ReturnValuesOnConditionCheckFailure": "ALL_OLD"}),
              wants="TransactionCanceledException"),
    gets("not even what was possible", "r3", None),
    transacts("one item is touched once", ("Put", {"Item": item("r3", serial=N1)}), ("Delete", {"Key": key("r3")}),
              wants="ValidationException"),
    transacts("a token is for one request", ("Put", {"Item": item("t", n=N1)}), ClientRequestToken="token-1"),
    transacts("which may be repeated", ("Put", {"Item": item("t", n=N1)}), ClientRequestToken="token-1"),
    transacts("and for no other", ("Put", {"Item": item("t", n=N2)}), ClientRequestToken="token-1",
              wants="IdempotentParameterMismatchException"),
    gets("it was done once", "t", {"n": N1}),
    transacts("a transaction has up to 100 actions", *[("Delete", {"Key": key(f"d{n}")}) for n in range(101)],
              wants="ValidationException"),

    {"step": "a partition is listed in order", "call": "query",
     "with": {**T, "KeyConditionExpression": "pk = :pk AND begins_with(sk, :r)", "ConsistentRead": True,
              "ExpressionAttributeValues": {":pk": {"S": "p"}, ":r": {"S": "r"}}},
     "counts": {"Items": 2}, "shows": {"Items.0.sk.S": "r1", "Items.1.sk.S": "r2"}},
    {"step": "page by page", "call": "query", "keeps": {"last": "LastEvaluatedKey"}, "counts": {"Items": 1},
     "with": {**T, "KeyConditionExpression": "pk = :pk AND begins_with(sk, :r)", "ConsistentRead": True, "Limit": 1,
              "ExpressionAttributeValues": {":pk": {"S": "p"}, ":r": {"S": "r"}}},
     "shows": {"LastEvaluatedKey": key("r1")}},
    {"step": "from where the last one ended", "call": "query", "shows": {"Items.0.sk.S": "r2"}, "counts": {"Items": 1},
     "with": {**T, "KeyConditionExpression": "pk = :pk AND begins_with(sk, :r)", "ConsistentRead": True,
              "ExclusiveStartKey": "<last>", "ExpressionAttributeValues": {":pk": {"S": "p"}, ":r": {"S": "r"}}}},
    {"step": "backwards", "call": "query", "shows": {"Items.0.sk.S": "t"},
     "with": {**T, "KeyConditionExpression": "pk = :pk", "ConsistentRead": True, "ScanIndexForward": False, "Limit": 1,
              "ExpressionAttributeValues": {":pk": {"S": "p"}}}},
    {"step": "only those of a driver", "call": "query", "counts": {"Items": 1}, "shows": {"Items.0.sk.S": "open"},
     "with": {**T, "KeyConditionExpression": "pk = :pk", "FilterExpression": "#with = :with", "ConsistentRead": True,
              "ExpressionAttributeNames": {"#with": "driver"},
              "ExpressionAttributeValues": {":pk": {"S": "p"}, ":with": {"S": "d2"}}}},
    {"step": "a query names its partition", "call": "query", "wants": "ValidationException",
     "with": {**T, "KeyConditionExpression": "sk = :sk", "ExpressionAttributeValues": {":sk": {"S": "r1"}}}},
    {"step": "an empty partition has nothing", "call": "query", "counts": {"Items": 0},
     "with": {**T, "KeyConditionExpression": "pk = :pk", "ExpressionAttributeValues": {":pk": {"S": "none"}}}},
    {"step": "the table is deleted", "call": "delete_table", "with": T},
]
