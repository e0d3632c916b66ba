"""Training: `engine.train.loop.train` is the job; its parts (loss, batching, precision, checkpoints) are one file each."""


def train(spec, run):
    """Teach one adapter; see `engine.train.loop.train`. (Imported late: this package must load without torch.)"""
    from engine.train.loop import train as job

    return job(spec, run)
