"""Jobs that no launcher has seen before."""

import random
import string

import pytest

RECIPES = ["deberta_v1_base", "deberta_v1_large", "deberta_v2_xlarge", "deberta_v2_xxlarge"]


class Job:
    """Names of everything, and the options that say them; in a bucket, or in one's mount."""

    def __init__(self, seed, mount=None):
        draw = random.Random(seed)

        def word():
            return "".join(draw.choices(string.ascii_lowercase, k=8))

        self.name, self.bucket, self.zone = f"{word()}-{draw.randrange(99)}", word(), word()
        self.project, self.image, self.cluster = word(), f"{word()}/{word()}", word()
        self.config = f"configs/{draw.choice(RECIPES)}.py"
        where = f"gs://{self.bucket}" if mount is None else mount
        self.workdir = f"{where}/{word()}/{word()}"
        self.cache = f"{self.workdir.rpartition('/')[0]}/compiled"
        # Blanks, quotes and a dollar have to arrive as they are.
        self.override = f'--config.data.corpus={where}/{word()} it\'s "$HOME"/*.jsonl'
        self.named = [f"--name={self.name}"]
        self.located = [*self.named, f"--zone={self.zone}", f"--project={self.project}"]
        self.run = [f"--config={self.config}", f"--workdir={self.workdir}", self.override]
        self.training = self.run if mount is None else [*self.run, f"--bucket={self.bucket}"]
        self.train = [f"--config={self.config}", f"--workdir={self.workdir}", "--distributed=auto"]
        self.train = ["-m", "deberta_jax.train", *self.train, self.override]


@pytest.fixture
def job(seed):
    return Job(seed)


@pytest.fixture
def mounted(seed):
    """A job in a mount, as it is made with --bucket."""
    return Job(seed, "/gcs")
