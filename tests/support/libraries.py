"""Libraries that come with extras, and those that only some rooms may import."""

#: Where alone a library may be imported.
LIBRARIES = {
    "sacred": {"experiments"},
    "ray": {"experiments"},
    "tqdm": {"experiments", "console"},
    "seaborn": {"plots", "experiments"},
    "matplotlib": {"plots", "experiments"},
    "pandas": {"plots", "experiments"},
    "triton": {"kernels", "experiments"},  # where reports tell its version
    "transformers": {"hf", "models", "experiments"},
}

#: What comes with extras, and the modules that need them as soon as they are imported.
OPTIONAL = {*LIBRARIES, "tokenizers", "datasets", "packaging"} - {"triton"}
