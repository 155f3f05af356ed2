"""A run of one variant, and its pipeline."""

import tiny
from dmvae.report.pipelines import write_pipelines


def made(folder, precision="float32", until=None):
    """The run's folder, its jobs, and the pipeline's folder."""
    over = {"sample.guidance": [2.0, 1.0], "sample.time_shift": 2.5, "run.precision": precision}
    path = tiny.write(folder, **over)
    jobs = tiny.run(path, "kl", until=until)
    (pipeline,) = write_pipelines(jobs, path.parent / "run")
    return path.parent / "run", jobs, pipeline
