"""Training: `engine.train.loop.train` is the job; its parts (loss, batching, precision, checkpoints) are one file each."""


def train(spec, run):
    """Teach one adapter, by one process or several; see `engine.train.loop.train`. (Imported late: this package must load without torch.)"""
    from engine.train import launch, loop

    spec.check()
    size = launch.wanted(spec)
    return loop.train(spec, run) if size == 1 else launch.together(spec, run, size)
