"""Installs the package `crnas_d2`. See README.md for the two ways to get detectron2."""

from setuptools import find_packages, setup

setup(
    name="crnas_d2",
    version="0.1.0",
    description="CR-NAS (computation reallocation for object detection) as a Detectron2 extension",
    author="the crnas_d2 authors",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["crnas_d2", "crnas_d2.*"]),
    package_data={"crnas_d2.report": ["*.jinja"]},
    # torch and detectron2 are not listed on purpose: people bring their own builds (another CUDA,
    # a compiled detectron2), and pip would put its own over them. What is listed is what detectron2
    # itself needs already, with no versions: in an environment that has torch and detectron2,
    # `pip install -e .` finds it all there and installs nothing else.
    install_requires=[
        "fvcore",
        "iopath",
        "jinja2",  # torch's, too
        "matplotlib",
        "numpy",
        "pycocotools",
        "tabulate",
        "tqdm",
    ],
    extras_require={"export": ["onnx", "onnxruntime", "onnxscript"]},  # tools/export.py
)
