"""The JobSet, the SkyPilot job and the image's recipe, against their schemas.

JobSet v1alpha2 and the Kubernetes types in it: the models of the package kubeflow_trainer_api,
generated from their OpenAPI documents.
"""

import copy
import random
import re

import jsonschema
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from tests.launch.scripts import LAUNCH, ROOT, commands, launch, printed

SIZES = {"v4:2x2x2": 8, "v5e:2x2": 4, "v5e:4x8": 32, "v5p:4x4x4": 64, "v6e:16x16": 256}
SIZES |= {"tpu7x:2x4x4": 32, "v6e:1x1": 1}
# The part of SkyPilot 0.14.1's sky/utils/schemas.py (get_task_schema, _get_single_resources_schema,
# get_storage_schema) that launch/sky.yaml uses; other fields are refused.
STRING, BOOLEAN, INTEGER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}


def strict(**properties):
    return {"type": "object", "additionalProperties": False, "properties": properties}


SKY = strict(
    name=STRING,
    workdir=STRING,
    num_nodes=INTEGER,
    resources=strict(
        infra=STRING,
        accelerators=STRING,
        use_spot=BOOLEAN,
        disk_size=INTEGER,
        job_recovery=strict(
            strategy=STRING,
            max_restarts_on_errors={"type": "integer", "minimum": 0},
            recover_on_exit_codes={
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 255},
                "uniqueItems": True,
            },
        ),
    ),
    envs={
        "type": "object",
        "patternProperties": {"^[a-zA-Z_][a-zA-Z0-9_]*$": {"type": ["string", "null"]}},
        "additionalProperties": False,
    },
    file_mounts={
        "type": "object",
        "additionalProperties": strict(
            name=STRING, source=STRING, mode={"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]}
        ),
    },
    setup=STRING,
    run=STRING,
)


def jobset(job, *options):
    text = printed("gke.sh", "create", *job.named, *job.training, f"--image={job.image}", *options)
    command, text = text.split("\n", 1)
    assert commands(command) == [["kubectl", "apply", "--filename=-", "<<EOF"]]
    return yaml.safe_load(text.removesuffix("EOF\n"))


def kept(written, read) -> bool:
    """Whether all of `written` was understood: the models drop fields that they do not know."""
    if isinstance(written, dict):
        known = isinstance(read, dict) and written.keys() <= read.keys()
        return known and all(kept(value, read[key]) for key, value in written.items())
    if isinstance(written, list):
        known = isinstance(read, list) and len(written) == len(read)
        return known and all(map(kept, written, read))
    return written == read


def valid(manifest) -> bool:
    return kept(manifest, JobsetV1alpha2JobSet.from_dict(manifest).to_dict())


@pytest.mark.parametrize("tpu", SIZES)
def test_jobset(mounted, seed, tpu):
    job = mounted
    draw = random.Random(seed)
    slices, restarts, spot = draw.randint(1, 9), draw.randint(1, 99), draw.random() < 0.5
    options = [f"--tpu={tpu}", f"--slices={slices}", f"--max-restarts={restarts}", "--queue=q"]
    manifest = jobset(job, *options, *["--spot"] * spot)
    assert valid(manifest)

    spec = manifest["spec"]
    assert manifest["metadata"]["name"] == job.name
    assert spec["failurePolicy"]["maxRestarts"] == restarts
    (slice_job,) = spec["replicatedJobs"]
    hosts, pod = slice_job["template"]["spec"], slice_job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert slice_job["replicas"] == slices
    assert hosts["parallelism"] == hosts["completions"]
    assert hosts["parallelism"] * chips == SIZES[tpu]
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == tpu.split(":")[1]
    assert ("cloud.google.com/gke-spot" in selector) == spot
    assert container["image"] == job.image
    assert [*container["command"], *container["args"]] == ["python", *job.train]
    (mount,) = (m for m in container["volumeMounts"] if m["name"] == "bucket")
    assert job.workdir.startswith(mount["mountPath"])
    (volume,) = (v for v in pod["volumes"] if v["name"] == "bucket")
    assert volume["csi"]["volumeAttributes"]["bucketName"] == job.bucket
    (flags,) = (e["value"] for e in container["env"] if e["name"] == "LIBTPU_INIT_ARGS")
    exported = launch("xla_flags.sh", tpu.split(":")[0], str(slices)).stdout
    assert f'"{flags} ' in exported


def test_jobset_in_a_bucket_mounts_nothing(job):
    """Nothing of the mount is left, and compiled programs are kept beside the run."""
    manifest = jobset(job, "--tpu=v5e:4x4")
    assert valid(manifest)
    assert "gcsfuse" not in str(manifest) and "/gcs" not in str(manifest)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert [mount["name"] for mount in container["volumeMounts"]] == ["memory"]
    assert [volume["name"] for volume in pod["volumes"]] == ["memory"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert environment["JAX_COMPILATION_CACHE_DIR"] == job.cache
    assert [*container["command"], *container["args"]] == ["python", *job.train]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "replicatedJobs", 0, "replicas"], "two"),
        (["spec", "failurePolicy", "maxRestart"], 3),
        (["spec", "replicatedJobs", 0, "template", "spec", "paralelism"], 3),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "containers"], {}),
    ],
)
def test_the_schema_refuses_what_is_wrong(job, path, value):
    manifest = copy.deepcopy(jobset(job, "--tpu=v5e:4x4"))
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises((ValueError, AttributeError, TypeError, AssertionError)):
        assert valid(manifest)


def test_sky_job():
    job = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    jsonschema.validate(job, SKY)
    # What launch/sky.sh sets is what the job reads.
    read = set(re.findall(r"\$\{?([A-Z]+)\b", job["run"] + str(job.get("file_mounts"))))
    assert read == set(job["envs"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job | {"resources": {"spot": True}}, SKY)


def test_image_copies_what_there_is():
    text = (LAUNCH / "Dockerfile").read_text()
    allowed = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [path for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for path in line.split()]
    assert {"setup.py", "deberta_jax", "configs", "launch"} <= set(copied)
    for path in copied:
        assert (ROOT / path).exists() and f"!{path.split('/')[0]}" in allowed
    (extra,) = re.findall(r"^ARG EXTRA=(\w+)$", text, re.M)
    assert f'"{extra}": [' in (ROOT / "setup.py").read_text()
