"""S3: what preflight's look at a bundle meets, and what sets the stage for it.

What an entry is: see `table_lambda.py`. S3 answers a HEAD without a body, so its errors have the status for a code.
"""

HERE = {"Bucket": "strict-builds"}
BUNDLE = {**HERE, "Key": "shop/1.zip"}


def looks(step, wants="ok", shows=(), **more):
    return {"step": step, "call": "head_object", "with": {**BUNDLE, **more}, "wants": wants, "shows": dict(shows)}


STEPS = [
    {"step": "a bucket is made", "call": "create_bucket", "with": HERE},
    {"step": "a bundle is put", "call": "put_object", "with": {**BUNDLE, "Body": b"one"}, "keeps": {"tag": "ETag"}},
    looks("a bundle is there", shows={"ETag": "<tag>", "ContentLength": 3}),
    {"step": "it is overwritten", "call": "put_object", "with": {**BUNDLE, "Body": b"other"}, "keeps": {"other": "ETag"}},
    looks("and its ETag is another", shows={"ETag": "<other>", "ContentLength": 5}),
    {"step": "the bucket keeps versions", "call": "put_bucket_versioning",
     "with": {**HERE, "VersioningConfiguration": {"Status": "Enabled"}}},
    {"step": "a version is put", "call": "put_object", "with": {**BUNDLE, "Body": b"first"},
     "keeps": {"first": "VersionId", "tag": "ETag"}},
    {"step": "and another version", "call": "put_object", "with": {**BUNDLE, "Body": b"second one"}, "keeps": {"second": "VersionId"}},
    looks("the first is there", shows={"VersionId": "<first>", "ETag": "<tag>"}, VersionId="<first>"),
    looks("the second serves", shows={"VersionId": "<second>", "ContentLength": 10}),
    {"step": "it is deleted", "call": "delete_object", "with": BUNDLE, "shows": {"DeleteMarker": True},
     "keeps": {"mark": "VersionId"}},
    looks("a bundle that is deleted is not there", "404"),
    looks("its first version is", shows={"VersionId": "<first>"}, VersionId="<first>"),
    looks("the mark of its deletion is no bundle", "405", VersionId="<mark>"),
    {"step": "a version is deleted", "call": "delete_object", "with": {**BUNDLE, "VersionId": "<first>"},
     "shows": {"VersionId": "<first>"}},
    looks("a version that is deleted is not there", "404", VersionId="<first>"),
    {"step": "an archived bundle is put", "call": "put_object",
     "with": {**HERE, "Key": "shop/old.zip", "Body": b"old", "StorageClass": "GLACIER"}},
    looks("it is told as archived", shows={"StorageClass": "GLACIER"}, Key="shop/old.zip"),
    looks("a key with signs of its own", "404", Key="shop/a b+c=d&e?.zip"),
    looks("a bundle that never was is not there", "404", Key="shop/never.zip"),
    looks("nor is one in a bucket that never was", "404", Bucket="strict-nowhere"),
    {"step": "nothing is put into a bucket that never was", "call": "put_object", "wants": "NoSuchBucket",
     "with": {"Bucket": "strict-nowhere", "Key": "shop/1.zip", "Body": b"one"}},
]
