"""C++ of windowed loads: inputs with sizes of their own in some dims.

For these dims the loops give a windowed input the stride 0; a load adds what its windows find.
Where the index of a window is one of the outer dims or the row of a tile, as in channels-last
images, the rows of a tile are read whole, or filled; where it moves along the row, as in row-major
images, elements are read one by one. The offsets are computed once for all steps of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from snnfx.kernels.region_ir import Load, Position, Program, Window

WINDOWS = r"""
// The index of a windowed dim in a tile: at its first element, and whether rows or cols move it.
struct Axis { int64_t at, by_row, by_col; };

struct Window { int axis; int64_t multiplier, offset, divisor, span; };

// Where window `w` leads from index i, in elements, or -1. entry: own size and stride of the dim.
inline int64_t reached(const Window& w, int64_t i, const int64_t* entry) {
  const int64_t x = i * w.multiplier + w.offset;
  if (x < 0) return -1;
  const int64_t index = x / w.divisor;
  return x - index * w.divisor < w.span && index < entry[0] ? index * entry[1] : -1;
}

// Where the elements of a tile are read through some windows: the offset of each row, -1 where
// there is none, and of each column, with whether there is one.
struct Reach {
  bool by_col, by_unit;
  int64_t rows[MOST_ELEMENTS], columns[MOST_ELEMENTS];
  int32_t found[MOST_ELEMENTS];
};

template <int COUNT>
void reach(Reach& to, const Window (&windows)[COUNT], const Span& s, const Axis* axes,
           const int64_t* table) {
  bool is_empty = false;
  to.by_col = false;
  for (const Window& w : windows) {
    to.by_col |= axes[w.axis].by_col != 0;
    is_empty |= table[2 * w.axis] == 0;
  }
  to.by_unit = !to.by_col && s.col_stride == 1;
  for (int64_t r = 0; r < s.rows; ++r) {
    int64_t total = is_empty ? -1 : r * s.row_stride;
    for (const Window& w : windows) {
      const Axis& axis = axes[w.axis];
      if (axis.by_col || total < 0) continue;
      const int64_t one = reached(w, axis.at + r * axis.by_row, table + 2 * w.axis);
      total = one < 0 ? -1 : total + one;
    }
    to.rows[r] = total;
  }
  for (int64_t c = 0; c < s.cols && !to.by_unit; ++c) {
    int64_t total = c * s.col_stride;
    for (const Window& w : windows) {
      const Axis& axis = axes[w.axis];
      if (!axis.by_col || total < 0) continue;
      const int64_t one = reached(w, axis.at + c, table + 2 * w.axis);
      total = one < 0 ? -1 : total + one;
    }
    to.found[c] = total >= 0;
    to.columns[c] = total < 0 ? 0 : total;  // read all the same, and not used: no branch
  }
}

template <class V, class M>
void load_reached(V* to, const M* from, const Span& s, const Reach& reach, V missing) {
  for (int64_t r = 0; r < s.rows; ++r) {
    V* line = to + r * s.cols;
    const M* row = from + reach.rows[r];
    if (reach.rows[r] < 0) fill(line, missing, s.cols);
    else if (reach.by_unit) load_run(line, row, s.cols);
    else {
      for (int64_t c = 0; c < s.cols; ++c) line[c] = Convert<V, M>::load(row[reach.columns[c]]);
      if (!reach.by_col) continue;
#pragma omp simd
      for (int64_t c = 0; c < s.cols; ++c) line[c] = reach.found[c] ? line[c] : missing;
    }
  }
  for (int64_t i = s.rows * s.cols; i < padded(s.rows * s.cols); ++i) to[i] = V(0);
}

inline int32_t positioned(int64_t i, int64_t offset, int64_t modulus) {
  const int64_t x = i + offset;
  return int32_t(modulus ? (x % modulus + modulus) % modulus : x);
}

inline void load_position(int32_t* to, const Span& s, const Axis& axis, int64_t offset,
                          int64_t modulus) {
  for (int64_t r = 0; r < s.rows; ++r) {
    int32_t* line = to + r * s.cols;
    const int64_t at = axis.at + r * axis.by_row;
    if (!axis.by_col) fill(line, positioned(at, offset, modulus), s.cols);
    else
      for (int64_t c = 0; c < s.cols; ++c) line[c] = positioned(at + c, offset, modulus);
  }
  for (int64_t i = s.rows * s.cols; i < padded(s.rows * s.cols); ++i) to[i] = 0;
}
"""

PLACE = r"""
// Where a tile lies in the dims with windows. After the sizes, geometry says which dim each of them
// is, then for each windowed input and each of them its own size and its stride.
inline void place(Tile& tile, const int64_t* geometry, int64_t outer, int64_t row, int64_t col) {
  const int64_t dims = geometry[0];
  const int64_t* sizes = geometry + 5;
  const int64_t* axes = sizes + dims;
  tile.table = axes + AXES;
  for (int64_t d = dims - 1; d >= 0; --d) {
    int64_t at = d == dims - 1 ? col : row;
    if (d < dims - 2) {
      at = outer % sizes[d];
      outer /= sizes[d];
    }
    for (int a = 0; a < AXES; ++a)
      if (axes[a] == d) tile.axes[a] = {at, d == dims - 2, d == dims - 1};
  }
}
"""

NO_PLACE = "inline void place(Tile&, const int64_t*, int64_t, int64_t, int64_t) {}"


def windowed_prelude(program: Program, most_elements: int) -> str:
    """What the C++ of a program with windows needs besides the prelude of all; else nothing."""
    count = len(program.window_dims())
    if not count:
        return ""
    head = f"constexpr int AXES = {count};\nconstexpr int MOST_ELEMENTS = {most_elements};"
    return f"{head}\n{WINDOWS}"


def tile_members(program: Program) -> str:
    """What a tile holds besides the offsets and spans of its buffers."""
    return "  Axis axes[AXES];\n  const int64_t* table;\n" if program.window_dims() else ""


def place_function(program: Program) -> str:
    """The function that tells a tile where it lies."""
    return PLACE if program.window_dims() else NO_PLACE


def load_windowed(
    program: Program, index: int, source: str, missing: Callable[[Load], str]
) -> list[str]:
    """C++ that loads the slices of windowed input `index`, one group for the same windows.

    Args:
        program: the program.
        index: of the input.
        source: C++ of the address of step ``steps[k]``.
        missing: C++ of the value that a load gives where there is no element.
    """
    axes = {dim: axis for axis, dim in enumerate(program.window_dims())}
    windowed = [i for i, buffer in enumerate(program.inputs) if buffer.windowed]
    table = f"tile.table + {2 * len(axes) * windowed.index(index)}"
    lines, slot = list[str](), 0
    groups = itertools.groupby(program.input_loads(index), key=lambda i: (i.windows, i.fill))
    for (windows, _), group in groups:
        loads = list(group)
        steps = ", ".join(str(load.step) for load in loads)
        lines += [
            "  {",
            f"    static const int64_t steps[] = {{{steps}}};",
            f"    static constexpr Window windows[] = {{{_initialisers(windows, axes)}}};",
            f"    reach(w.reach, windows, tile.span[{index}], tile.axes, {table});",
            f"    for (int k = 0; k < {len(loads)}; ++k)",
            f"      load_reached(w.in{index}[{slot} + k], {source},",
            f"                   tile.span[{index}], w.reach, {missing(loads[0])});",
            "  }",
        ]
        slot += len(loads)
    return lines


def load_positions(program: Program) -> list[str]:
    """C++ that computes the positions of a tile's elements."""
    axes = {dim: axis for axis, dim in enumerate(program.window_dims())}
    return [
        f"  load_position(w.position[{slot}], tile.span[0], tile.axes[{axes[position.dim]}], "
        f"{position.offset}, {position.modulus});"
        for slot, position in enumerate(program.positions())
    ]


def position_slots(program: Program) -> dict[Position, int]:
    """Which of the workspace's rows holds each position."""
    return {position: slot for slot, position in enumerate(program.positions())}


def _initialisers(windows: tuple[Window, ...], axes: dict[int, int]) -> str:
    return ", ".join(
        f"{{{axes[w.dim]}, {w.multiplier}, {w.offset}, {w.divisor}, {w.span}}}" for w in windows
    )
