"""Memory optimisation of eager training: which modules become checkpointing containers, and how.

`memory_optimization` wraps the layers of a model in containers that keep only their inputs, packed
where the inputs are proven to be spikes, and splits and unwraps the containers by the predicted
peak of a training step. The names, defaults and fields are the documented ones of SpikingJelly's
`activation_based.memopt`; where those stand for trial runs on a GPU, a prediction from the recorded
graph of one step takes their place, and the docstring of the argument says what it does now.
"""
