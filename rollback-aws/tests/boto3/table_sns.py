"""SNS: what the listener publishes, and the limits that it keeps.

What an entry is: see `table_lambda.py`.
"""


def publishes(step, wants="ok", **more):
    return {"step": step, "call": "publish", "with": {"TopicArn": "<topic>", "Message": "hello", **more}, "wants": wants}


def text(value):
    return {"DataType": "String", "StringValue": value}


STEPS = [
    {"step": "a topic is created", "call": "create_topic", "with": {"Name": "strict-topic"}, "keeps": {"topic": "TopicArn"}},
    {"step": "twice is harmless", "call": "create_topic", "with": {"Name": "strict-topic"}, "shows": {"TopicArn": "<topic>"}},
    {"step": "its attributes are read", "call": "get_topic_attributes", "with": {"TopicArn": "<topic>"},
     "shows": {"Attributes.TopicArn": "<topic>"}},
    {"step": "a topic that is not there has none", "call": "get_topic_attributes", "wants": "NotFound",
     "with": {"TopicArn": "arn:aws:sns:us-east-1:123456789012:nowhere"}},
    publishes("a message is published"),
    publishes("with subject and attributes", Subject="checkout: v2 was rolled back",
              MessageAttributes={"event": text("entered"), "target": text("checkout, na\u00efve")}),
    publishes("with a text for each protocol", MessageStructure="json",
              Message='{"default": "{\\"version\\": 1}", "email": "it was rolled back", "sms": "rolled back"}'),
    publishes("of which one is the default", "InvalidParameter", MessageStructure="json", Message='{"email": "x"}'),
    publishes("and which are JSON", "InvalidParameter", MessageStructure="json", Message="hello"),
    publishes("a subject of 99 characters", Subject="x" * 99),
    publishes("and not of 100", "InvalidParameter", Subject="x" * 100),
    publishes("nor with a line break", "InvalidParameter", Subject="one\ntwo"),
    publishes("a message of 256 KB", Message="x" * 262144),
    publishes("and not a byte more", "InvalidParameter", Message="x" * 262145),
    publishes("its attributes are counted", "InvalidParameter", Message="x" * 262140, MessageAttributes={"a": text("b")}),
    publishes("an empty message is none", "InvalidParameter", Message=""),
    publishes("an attribute is not empty", "ParameterValueInvalid", MessageAttributes={"event": text("")}),
    {"step": "nothing is published to a topic that is not there", "call": "publish", "wants": "NotFound",
     "with": {"TopicArn": "arn:aws:sns:us-east-1:123456789012:nowhere", "Message": "hello"}},
    {"step": "a FIFO topic is created", "call": "create_topic", "keeps": {"topic": "TopicArn"},
     "with": {"Name": "strict.fifo", "Attributes": {"FifoTopic": "true"}}},
    publishes("which takes no message without a group", "InvalidParameter", MessageDeduplicationId="1"),
    publishes("and none without an id", "InvalidParameter", MessageGroupId="g"),
    {**publishes("but one with both", MessageGroupId="g", MessageDeduplicationId="1"), "keeps": {"first": "MessageId"}},
    {**publishes("once, however often it is sent", MessageGroupId="g", MessageDeduplicationId="1"),
     "same": {"MessageId": "<first>"}},
    {"step": "the topic is deleted", "call": "delete_topic", "with": {"TopicArn": "<topic>"}},
]
