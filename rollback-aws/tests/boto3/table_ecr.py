"""ECR: what preflight's look at an image meets, and what sets the stage for it.

What an entry is: see `table_lambda.py`.
"""

import json

REPOSITORY = {"repositoryName": "strict/shop"}
KIND = "application/vnd.oci.image.manifest.v1+json"


def manifest(name):
    """An image of nothing, that differs by a note."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2,
             "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    return json.dumps({"schemaVersion": 2, "mediaType": KIND, "config": empty, "layers": [empty], "annotations": {"name": name}})


def pushes(step, name, tag, **more):
    return {"step": step, "call": "put_image", "with": {
        **REPOSITORY, "imageManifest": manifest(name), "imageManifestMediaType": KIND, "imageTag": tag}, **more}


def looks(step, wants="ok", registry="123456789012", repository=REPOSITORY, **id_):
    shows = {"counts": {"imageDetails": 1}} if wants == "ok" else {}
    return {"step": step, "call": "describe_images", "wants": wants, **shows,
            "with": {"registryId": registry, **repository, "imageIds": [id_]}}


STEPS = [
    {"step": "a repository is created", "call": "create_repository", "with": REPOSITORY,
     "shows": {"repository.repositoryName": "strict/shop"}, "keeps": {"registry": "repository.registryId"}},
    {"step": "one name is one repository", "call": "create_repository", "with": REPOSITORY, "wants": "RepositoryAlreadyExistsException"},
    pushes("an image is pushed", "one", "1", keeps={"one": "image.imageId.imageDigest"}),
    pushes("and another", "two", "2", keeps={"two": "image.imageId.imageDigest"}),
    pushes("the same is not pushed twice", "one", "1", wants="ImageAlreadyExistsException"),
    {**looks("it is found by its digest", registry="<registry>", imageDigest="<one>"),
     "shows": {"imageDetails.0.imageDigest": "<one>", "imageDetails.0.imageTags": ["1"]}},
    {**looks("and by its tag", registry="<registry>", imageTag="2"), "shows": {"imageDetails.0.imageDigest": "<two>"}},
    {**looks("an image that can be pulled is active", registry="<registry>", imageTag="2"),
     "shows": {"imageDetails.0.imageStatus": "ACTIVE"}},
    pushes("its tag moves", "two", "1"),
    {**looks("and is the other's", registry="<registry>", imageTag="1"), "shows": {"imageDetails.0.imageDigest": "<two>"}},
    looks("without a tag it is there", registry="<registry>", imageDigest="<one>"),
    looks("a tag that never was is not there", "ImageNotFoundException", registry="<registry>", imageTag="9"),
    {"step": "an image is deleted", "call": "batch_delete_image", "with": {**REPOSITORY, "imageIds": [{"imageDigest": "<one>"}]},
     "counts": {"failures": 0}},
    {"step": "what is gone is not deleted", "call": "batch_delete_image",
     "with": {**REPOSITORY, "imageIds": [{"imageDigest": "<one>"}]}, "counts": {"failures": 1}},
    looks("an image that is deleted is not there", "ImageNotFoundException", registry="<registry>", imageDigest="<one>"),
    looks("nor is a repository that never was", "RepositoryNotFoundException", registry="<registry>",
          repository={"repositoryName": "strict/never"}, imageTag="1"),
    looks("nor one of another account", "RepositoryNotFoundException", registry="210987654321", imageTag="2"),
]
