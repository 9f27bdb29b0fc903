"""Whether a module can run chunk by chunk along time and give what one run gives.

Proof by comparison: the module is traced once over all T steps and once for each chunk, and the
terms of what each step computes (`snnfx.passes.analysis.step_values`) must be the same. A chunk's
steps are numbered as in the whole, and its state is the term of the state that the chunk before it
left. No operator is assumed to be stateless and no loop is recognised: a neuron's steps are equal
because each applies the same operators to the step's input and to the same earlier potential, and
statistics over all steps are a term that no chunk has.

Equalities are those of exact arithmetic, and of what the runs return: gradients are the same where
they follow from the operators, but a custom backward that differs from step to step is not seen.

Terms for each slice and each node: linear in nodes times T.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, Node

from snnfx.passes.analysis.axes_rules import has_numbers_for_sizes, relation_of, shape_of
from snnfx.passes.analysis.dataflow import written_nodes
from snnfx.passes.analysis.opkinds import is_random, packet
from snnfx.passes.analysis.placement import Placement
from snnfx.passes.analysis.step_terms import BEFORE, Term, Terms
from snnfx.passes.analysis.step_values import Steps, Value, Whole, sliced
from snnfx.passes.fxgraph import ancestors, is_symbol, producer, tensor_value


@dataclass(frozen=True)
class StepRun:
    """One traced run of a module over some time steps.

    Attributes:
        graph: functional ATen nodes with fake tensors of static sizes in their metadata.
        steps: how many time steps.
        sequences: placeholders with time in dimension 0, ``[steps, ...]``.
        states_in: the state before the run, one for each state variable; None: a number that the
            trace has in its arguments. A chunk is traced with the number that the chunk before it
            left, or with the one that the state variable always has.
        outputs: results with time in dimension 0, ``[steps, ...]``.
        states_out: the state after the run; None: a number.
        constants: a key for each of the other placeholders (and `get_attr` nodes) that holds the
            same tensor in all runs: parameters, buffers, arguments. Nothing that a run writes is
            one. A placeholder without a key is taken to be equal to nothing else.
    """

    graph: Graph
    steps: int
    sequences: tuple[Node, ...]
    states_in: tuple[Node | None, ...]
    outputs: tuple[Node, ...]
    states_out: tuple[Node | None, ...]
    constants: Mapping[Node, Hashable] = field(default_factory=dict[Node, Hashable])


@dataclass(frozen=True)
class NotChunkable:
    """Why a module is not proven to run chunk by chunk.

    Attributes:
        reason: a sentence for the user.
        node: the name of the node that it is about, in the whole run if it has one; or "".
    """

    reason: str
    node: str


States = tuple[Term | None, ...]


@dataclass(frozen=True)
class _Found:
    """The terms of one run: of each step of each output, and of each state after it.

    An output whose steps are not known one by one has one term, which no step has.
    """

    steps: Steps
    outputs: tuple[tuple[Term, ...], ...]
    states: States


def check_chunks(whole: StepRun, chunks: Sequence[StepRun]) -> NotChunkable | None:
    """Prove that running chunk after chunk gives what the whole run gives.

    The first chunk starts from the state that the whole run starts from, each further one from the
    state that the one before it left. Then the outputs of the chunks, concatenated, are those of
    the whole run, and so is the state after the last chunk.

    Args:
        whole: the run over all steps.
        chunks: the runs over consecutive chunks of them, in order; of any sizes.

    Returns:
        None if it is proven, else why not.
    """
    objection = next(_objections(whole, chunks), None)
    if objection is not None:
        return objection
    terms = Terms()
    started = tuple(
        None if node is None else terms.leaf(("state", i, _kind(node)), shape_of(node))
        for i, node in enumerate(whole.states_in)
    )
    found, states, offset = list[_Found](), started, 0
    for chunk in chunks:
        found.append(_follow(terms, chunk, states, offset))
        states, offset = found[-1].states, offset + chunk.steps
    difference = _difference(whole, _follow(terms, whole, started, 0), found)
    return difference or next((w for run in (whole, *chunks) for w in _writes(run)), None)


def _objections(whole: StepRun, chunks: Sequence[StepRun]) -> Iterator[NotChunkable]:
    """What keeps the runs from being compared, or from being equal whatever they compute."""
    steps = sum(chunk.steps for chunk in chunks)
    if steps != whole.steps or min((chunk.steps for chunk in chunks), default=0) < 1:
        reason = f"the chunks have {steps} time steps in all, and the whole has {whole.steps}"
        yield NotChunkable(reason, "")
        return
    for run in (whole, *chunks):
        yield from _objections_to_graph(run)
    states = whole.states_in
    for chunk in chunks:
        yield from _objections_to_ends(whole, chunk, states)
        states = chunk.states_out


def _objections_to_graph(run: StepRun) -> Iterator[NotChunkable]:
    """What no terms can be given for."""
    for node in run.graph.nodes:
        if is_random(node):
            yield NotChunkable(f"'{_operator(node)}' draws random numbers", node.name)
        if is_symbol(node) or not has_numbers_for_sizes(node):
            yield NotChunkable(f"'{_operator(node)}' has a size that is not known", node.name)
    for node in (*run.sequences, *run.outputs):
        if shape_of(node)[:1] != (run.steps,):
            reason = f"'{node.name}' has not {run.steps} time steps as its first dimension"
            yield NotChunkable(reason, node.name)


def _writes(run: StepRun) -> Iterator[NotChunkable]:
    """Tensors that are given to a run and not the same after it, as often as there are runs."""
    written = written_nodes(run.graph)
    for node in run.graph.nodes:
        if node in written and node.op in ("placeholder", "get_attr"):
            yield NotChunkable(f"the run writes into '{node.name}', which it is given", node.name)


def _objections_to_ends(
    whole: StepRun, chunk: StepRun, states: Sequence[Node | None]
) -> Iterator[NotChunkable]:
    """Ends of a chunk that are none of the whole's, or of the state that it starts from."""
    for name in ("sequences", "states_in", "outputs", "states_out"):
        own, expected = len(getattr(chunk, name)), len(getattr(whole, name))
        if own != expected:
            yield NotChunkable(f"a chunk has {own} {name}, and the whole has {expected}", "")
            return
    for node, of_whole in zip(chunk.sequences, whole.sequences, strict=True):
        if shape_of(node)[1:] != shape_of(of_whole)[1:] or _kind(node) != _kind(of_whole):
            yield NotChunkable(f"the steps of '{node.name}' differ from the whole's", node.name)
    for node, left in zip(chunk.states_in, states, strict=True):
        alike = (node is None) == (left is None)
        if node is not None and left is not None:
            alike = shape_of(node) == shape_of(left) and _kind(node) == _kind(left)
        if not alike:
            name = next((n.name for n in (left, node) if n is not None), "")
            reason = f"the state '{name}' is another kind of value before a chunk than after one"
            yield NotChunkable(reason, name)


def _follow(terms: Terms, run: StepRun, states: States, offset: int) -> _Found:
    """The terms of a run whose first step is number `offset` of the whole."""
    given: dict[Node, Value] = {
        node: Whole(terms.leaf(("constant", key, _kind(node)), shape_of(node)))
        for node, key in run.constants.items()
    }
    for node, term in zip(run.states_in, states, strict=True):
        if node is not None and term is not None:
            given[node] = Whole(term)
    for i, node in enumerate(run.sequences):
        shape = (1, *shape_of(node)[1:])
        numbers = range(offset, offset + run.steps)
        leaves = [terms.leaf(("step", i, t, _kind(node)), shape, t) for t in numbers]
        given[node] = sliced(Placement(0, 1, 1), leaves)
    steps = Steps(terms, run.graph, given, run.steps)
    outputs = tuple(steps.along_first(node) or (steps.whole(node),) for node in run.outputs)
    after = tuple(None if node is None else steps.whole(node) for node in run.states_out)
    return _Found(steps, outputs, after)


def _kind(node: Node) -> Hashable:
    """What a term of given numbers does not say."""
    value = tensor_value(node)
    return None if value is None else (value.dtype, value.device)


def _difference(whole: StepRun, expected: _Found, chunks: Sequence[_Found]) -> NotChunkable | None:
    """Where the outputs and the state of the chunks differ from those of the whole; None: nowhere.

    Named is the first node on the way there that no chunk has.
    """
    differing = list(_differing(whole, expected, chunks))
    if not differing:
        return None
    nodes = [node for node in differing if node is not None]
    if not nodes:
        return NotChunkable("a state is a number in the whole run, and a tensor in the chunks", "")
    known = {
        t for c in chunks for n in c.steps.nodes for found in c.steps.results_of(n) for t in found
    }
    path, steps = ancestors(nodes), expected.steps
    # Of several results some are never known, such as the statistics that a norm only passes on.
    unmatched = [
        n for n in steps.nodes if n in path and not any(r <= known for r in steps.results_of(n))
    ]
    for node in (*(n for n in unmatched if _may_differ(n, steps)), *unmatched):
        return NotChunkable(_reason(node, steps), node.name)
    name = nodes[0].name
    return NotChunkable(f"'{name}' puts the time steps together in another order", name)


def _may_differ(node: Node, steps: Steps) -> bool:
    """Whether a node is more than a constant that every run makes in the size that it needs."""
    terms = frozenset[Term]().union(*steps.results_of(node))
    depends = any(steps.terms.latest(term) != BEFORE for term in terms)
    return depends or node.op != "call_function" or node in steps.mixing | steps.written


def _differing(whole: StepRun, expected: _Found, chunks: Sequence[_Found]) -> Iterator[Node | None]:
    """The outputs and states of the whole run that the chunks do not give."""
    for i, (node, terms) in enumerate(zip(whole.outputs, expected.outputs, strict=True)):
        if tuple(term for chunk in chunks for term in chunk.outputs[i]) != terms:
            yield node
    for node, term, found in zip(whole.states_out, expected.states, chunks[-1].states, strict=True):
        if term != found:
            yield node


def _reason(node: Node, steps: Steps) -> str:
    name = _operator(node)
    if node in steps.mixing:
        known = relation_of(node) is not None
        return f"'{name}' " + ("mixes time steps" if known else "may mix time steps")
    if node in steps.written:
        return f"the run writes into '{name}', and what it holds then is not followed"
    if node.op in ("placeholder", "get_attr"):
        return f"'{name}' is neither an input nor a state, and not the same in all runs"
    return f"'{name}' computes something else in the whole run than in chunks"


def _operator(node: Node) -> str:
    """The name of the operator that a node calls, without overload; of others the node's."""
    source = producer(node)
    found = getattr(packet(source), "__name__", source.name)
    return str(found) if source.op == "call_function" else source.name
