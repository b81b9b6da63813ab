"""Faults of `tests/mutants.py` that nothing can see, and why."""
# ruff: noqa: E501, for lines as they print.

EXPLAINED = {
    f"jetgraph/{module}: {line} → {line.replace(*change)}": why
    for module, line, change, why in (
        (
            "jets/arithmetic.py",
            "result = torch.empty((1,) * dims, dtype=dtype, device='meta')",
            ("(1,)", "(2,)"),
            "it is asked for its type alone",
        ),
        (
            "jets/arithmetic.py",
            "count = min(order + 1, a.stop + b.stop - 1) - start",
            ("stop - 1", "stop + 1"),
            "longer by zeros: the general way is taken, to the same rows",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(b, Series) and a.stop - a.start == 1:",
            ("-", "+"),
            "not exchanged, they are convolved: the same product",
        ),
        (
            "jets/arithmetic.py",
            "if not torch.compiler.is_compiling() and "
            "(is_functorch_wrapped_tensor(a) or is_functorch_wrapped_tensor(b)):",
            (" and ", " or "),
            "a new total in the place of one that is written over",
        ),
        ("jets/closed.py", "return torch.copysign(x, -1.0)", ("1.0", "2.0"), "its sign alone is read"),
        (
            "jets/closed.py",
            "def softplus(x: Sequence[Tensor | None], beta: float=1, threshold: float=20) -> Above:",
            ("20", "21"),
            "between the two the slope is 1 up to less than a rounding",
        ),
        (
            "algebra/automaton.py",
            "bits = 0 if order is None else self.incoming[-1].bit_length() + 1",
            ("[-1]", "[-2]"),
            "of one order the decoder makes no more terms than arrive at it",
        ),
        (
            "algebra/automaton.py",
            "bits = 0 if order is None else self.incoming[-1].bit_length() + 1",
            ("+ 1", "+ 2"),
            "room that no number needs",
        ),
        (
            "algebra/automaton.py",
            "mask = (1 << bits * ((order or 0) + 1)) - 1",
            ("+ 1", "+ 2"),
            "one coefficient more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "mask = (1 << bits * ((order or 0) + 1)) - 1",
            ("or 0", "or 1"),
            "one coefficient more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "tables = {at: table for at, table in tables.items() "
            "if last_read.get(at, self.sink) > point or at == point}",
            (" > ", " >= "),
            "tables are dropped one point later",
        ),
        ("algebra/automaton.py", "for at in range(point + 1):", ("+ 1", "+ 2"), "a point more, which is not read"),
        ("algebra/automaton.py", "best.append(max(orders, default=0))", ("=0", "=1"), "something is at every point"),
        (
            "algebra/automaton.py",
            "STATE_BUDGET = 300000",
            ("300000", "300001"),
            "as good a budget",
        ),
        (
            "algebra/automaton.py",
            "if bits == 0:",
            ("0", "1"),
            "the same by doubling",
        ),
        (
            "algebra/automaton.py",
            "return 0",
            ("0", "1"),
            "any state does",
        ),
        (
            "algebra/automaton.py",
            "if not 0 <= (length or 0) <= self.sink or not 0 <= (order or 0) <= self.highest:",
            ("<= self.sink", "< self.sink"),
            "no path is as long",
        ),
        (
            "algebra/automaton.py",
            "if not 0 <= (length or 0) <= self.sink or not 0 <= (order or 0) <= self.highest:",
            ("(length or 0)", "(length or 1)"),
            "one is within too",
        ),
        (
            "algebra/automaton.py",
            "mask = (1 << bits * ((order or 0) + 1)) - 1",
            ("(1", "(2"),
            "one bit more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "last_read = {move.start: point for point, moves in enumerate(self.moves, start=1) for move in moves}",
            ("=1", "=2"),
            "tables are dropped one point later",
        ),
        (
            "algebra/automaton.py",
            "if silent < len(hops) and (longest is None or n + longer <= longest):",
            (" and ", " or "),
            "lengths above the longest are not read",
        ),
        (
            "algebra/automaton.py",
            "if silent < len(hops) and (longest is None or n + longer <= longest):",
            ("n + ", "n - "),
            "lengths above the longest are not read",
        ),
        (
            "algebra/automaton.py",
            "if silent < len(hops) and (longest is None or n + longer <= longest):",
            ("silent < ", "silent <= "),
            "of no moves nothing is added",
        ),
        (
            "algebra/automaton.py",
            "by_point: list[list[Entry]] = [[] for _ in range(self.sink + 1)]",
            ("+ 1", "+ 2"),
            "a point more, which is not read",
        ),
        (
            "algebra/automaton.py",
            "numbers = {(n, j): _coefficient(value, bits, j) for n, value in table.items() for j in range(top + 1)}",
            ("+ 1", "+ 2"),
            "no path has that order, and zeros are left out",
        ),
        (
            "algebra/selection.py",
            "number = _most(lambda n: count(patterns[:n]) is not None, 0, len(patterns) - 1)",
            (", 0,", ", 1,"),
            "of none as of one too large nothing is said",
        ),
        (
            "algebra/selection.py",
            "number = _most(lambda n: count(patterns[:n]) is not None, 0, len(patterns) - 1)",
            ("- 1", "+ 1"),
            "all of them are known to be too many",
        ),
        (
            "algebra/selection.py",
            "if found is None:",
            ("if ", "if not "),
            "another site is told, which fits too",
        ),
        (
            "algebra/selection.py",
            "if found is None:",
            (" is ", " is not "),
            "another site is told, which fits too",
        ),
        (
            "algebra/selection.py",
            "number = self.count() // 2",
            ("2", "3"),
            "another number is told, which fits too",
        ),
        (
            "algebra/selection.py",
            "middle = (low + high + 1) // 2",
            ("+ 1", "+ 2"),
            "another one between them",
        ),
        ("algebra/expansion.py", "return Jet(0)", ("0", "1"), "the recipe takes it at no site"),
        (
            "algebra/expansion.py",
            "fitting = f'raise it with expansion.centres({alias!r}, budget={number})' if number < COUNTABLE else ''",
            (" < ", " <= "),
            "as good a bound",
        ),
        ("algebra/selection.py", "if allowed < count:", ("<", "<="), "where all are allowed, the check finds nothing"),
        (
            "algebra/selection.py",
            "while number > 1 and (not TermGraph.count_within(automaton, ListAcceptor(self[:number]))):",
            (">", ">="),
            "one path is within any budget but that of a test",
        ),
        (
            "algebra/selection.py",
            "number = self.count() // 2",
            ("//", "*"),
            "two more steps down to the same number",
        ),
        ("algebra/selection.py", "matched = 0", ("0", "1"), "with that bit a pattern begins, and none ends"),
        (
            "algebra/rewriting.py",
            "follows = [False] * (len(sites) + 1)",
            ("+ 1", "+ 2"),
            "a longer list, whose end is never read",
        ),
        ("algebra/rewriting.py", "HOP_BUDGET = 1000000", ("000000", "000001"), "as good a budget"),
        (
            "algebra/patterns.py",
            "if last > 1:",
            ("if ", "if not "),
            "states are left apart from which the same goes on",
        ),
        ("jets/series.py", "ORDER_BUDGET = 1000", ("000", "001"), "as good a budget"),
        ("jets/series.py", "if low >= high:", ("=", ""), "no rows beside zeros"),
        ("jets/series.py", "if low > start:", ("> ", ">= "), "a part without rows"),
        ("jets/series.py", "if high < stop:", ("< ", "<= "), "a part without rows"),
        ("jets/series.py", "elif coefficients.shape[0] > room:", ("> ", ">= "), "a slice that is all of it"),
        (
            "jets/arithmetic.py",
            "return (row for row in value.rows() if row is not None) if value.apart else (value.coefficients,)",
            ("f va", "f not va"),
            "asked of each row, or of all in one tensor: the same answer",
        ),
        (
            "jets/arithmetic.py",
            "return stack if missing <= 0 else stack.reshape(stack.shape[0], *(1,) * missing, *stack.shape[1:])",
            ("=", ""),
            "a reshape to the shape that it has",
        ),
        (
            "jets/arithmetic.py",
            "return a if a == b or not b else b if not a else torch.broadcast_shapes(a, b)",
            ("or not b", "and (not b)"),
            "the slower way to the same shape",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(b, Series) and a.stop - a.start == 1:",
            ("==", "!="),
            "not exchanged, they are convolved: the same product",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(b, Series) and b.stop - b.start > 1:",
            ("> ", ">= "),
            "convolved, with one row: the same product",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(a, Series) and isinstance(b, Series) and (not (a.apart or b.apart)) and (orders(a) == orders(b)):",
            ("or ", "and "),
            "rows that lie apart are put into one tensor first",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(b, Series) and a.stop - a.start == 1:",
            ("1", "2"),
            "not exchanged, they are convolved: the same product",
        ),
        (
            "jets/arithmetic.py",
            "if isinstance(b, Series) and b.stop - b.start > 1:",
            ("-", "+"),
            "convolved, with one row: the same product",
        ),
        (
            "jets/arithmetic.py",
            "if not one.apart and one.stop - one.start >= count and _writable(one, other):",
            ("=", ""),
            "the general way, to the same rows",
        ),
        (
            "jets/arithmetic.py",
            "count = min(order + 1, a.stop + b.stop - 1) - start",
            ("1,", "2,"),
            "longer by zeros: the general way is taken, to the same rows",
        ),
        (
            "jets/arithmetic.py",
            "return Series.constant(torch.zeros_like(a.first * b.first), order)",
            ("*", "+"),
            "it is asked for its shape alone",
        ),
        (
            "jets/elementary.py",
            "difference = rest - value if len(x) > 2 else None",
            ("> ", ">= "),
            "a difference that no order reads",
        ),
        (
            "jets/interpreter.py",
            "if not order and frozen is None and (out is None) and _run_code(chain, values, keep):",
            (" is None ", " is not None "),
            "interpreted, to the same values",
        ),
        (
            "jets/rules/bilinear.py",
            "if start > order or not all((isinstance(value, Series) and value.stop - value.start > 1 for value in (a, b))):",
            ("-", "+"),
            "one coefficient in the general way: the same rows",
        ),
        (
            "jets/rules/elementwise.py",
            "scale = (-1) ** (order + 1) * math.factorial(order) / math.factorial(m)",
            ("+", "-"),
            "the same parity",
        ),
        *(
            (
                "jets/rules/norms.py",
                "register_rule(op, with_own_centre(plain or op, rule(False), in_place=True), affine=affine, when=when, gate='norm', held=with_own_centre(plain or op, rule(True), in_place=True), through_zero=lambda bound: not shifts(bound) and (bound.get('bias') is None or is_marked(bound['bias'])), absorbs=absorbs)",
                (f"ace=True), {following}", f"ace=False), {following}"),
                "the same values, in memory of their own",
            )
            for following in ("a", "t")
        ),
        (
            "jets/rules/norms.py",
            "return aten.batch_norm.default(stack[0], *given, False, 0.0, eps, False).unsqueeze(0)",
            (" False)", " True)"),
            "a kernel of cuDNN, where there is one",
        ),
        (
            "jets/rules/norms.py",
            "return aten.batch_norm.default(stack[0], *given, False, 0.0, eps, False).unsqueeze(0)",
            ("0.0", "1.0"),
            "a momentum, for statistics that are not moved on",
        ),
        *(
            (
                "jets/rules/norms.py",
                f"def rule(order: int, x: Any, {which}, weight: Any=None, bias: Any=None, eps: float=1e-05, {cudnn}: bool=True) -> Series:",
                ("True", "False"),
                "a kernel of cuDNN, where there is one",
            )
            for which, cudnn in (
                ("normalized_shape: Sequence[int]", "cudnn_enable"),
                ("num_groups: int", "cudnn_enabled"),
            )
        ),
        (
            "jets/rules/norms.py",
            "squares: Rows = [None] * (x.order + 1)",
            ("+ 1", "+ 2"),
            "a row more, which is left out at the end",
        ),
        (
            "jets/rules/norms.py",
            "if not isinstance(bias, Series) and x.start == 0 and (x.dtype == bias.dtype):",
            ("dtype == ", "dtype != "),
            "the general way, to the same sum",
        ),
        ("jets/rules/norms.py", "if eps <= 0:", ("0", "1"), "of a sum with more than 0 this holds"),
        *(
            (
                f"jets/rules/{module}.py",
                "if order == 0 or not x.varies:",
                ("or not x.varies", "and (not x.varies)"),
                "zeros, worked out",
            )
            for module in ("attention", "piecewise", "elementwise")
        ),
        *(
            ("jets/rules/attention.py", line, change, "an order more, which is not read")
            for line, change in (
                ("return mean_slope(x, lambda value: rule(1, value, dim, *args, **kwargs))", ("(1", "(2")),
                ("y0 = rule(Series.constant(x.coefficient(0), 1)).coefficient(0)", (" 1)", " 2)")),
                ("slope = slope + share * rule(Series.variate(node * z, direction, 1)).coefficient(1)", (" 1)", " 2)")),
                (
                    "register_rule(aten.logsumexp.default, _logsumexp, gate='attention', line=lambda order, x, *args, **kwargs: mean_slope(x, lambda value: _logsumexp(1, value, *args, **kwargs)))",
                    ("(1", "(2"),
                ),
            )
        ),
        (
            "jets/rules/attention.py",
            "_NODES, _SHARES = ((tensor + shift) / 2 for tensor, shift in zip(map(torch.tensor, leggauss(32)), (1, 0), strict=True))",
            ("32", "33"),
            "as good a quadrature",
        ),
        (
            "jets/rules/piecewise.py",
            "bounded = elementary.scale([torch.where(positive, 0.0, first), *rows[1:]], input_scale)",
            ("0.0", "1.0"),
            "on the piece that is not taken",
        ),
        *(
            ("jets/rules/elementwise.py", "if whole and 0 < exponent <= 64:", change, why)
            for change, why in (
                (("0 <", "0 <="), "0 does not come here"),
                (("<= 64", "< 64"), "as good a bound"),
                (("64", "65"), "as good a bound"),
            )
        ),
        (
            "jets/rules/elementwise.py",
            "if not whole and (order and x.varies or exponent < 0):",
            ("<", "<="),
            "0 does not come here",
        ),
        (
            "jets/rules/elementwise.py",
            "return None if float(exponent).is_integer() and exponent >= 0 else 'norm'",
            (">=", ">"),
            "of 0, which makes it affine, it is not asked",
        ),
        (
            "jets/rules/elementwise.py",
            "return None if float(exponent).is_integer() and exponent >= 0 else 'norm'",
            ("0", "1"),
            "of 0, which makes it affine, it is not asked",
        ),
        (
            "jets/rules/elementwise.py",
            "slope = torch.where(small, _slope_at(zero, rule), (f(z) - start) / torch.where(small, 1.0, z))",
            ("1.0", "2.0"),
            "any number but 0, for values that are not taken",
        ),
        (
            "jets/rules/elementwise.py",
            "register_rule(aten.pow.Tensor_Scalar, _power_scalar, kind='elementwise', affine='self', when=lambda bound, moving: bound['exponent'] in (0, 1), added=lambda bound, moving: [bound['exponent'] == 0], gate=_power_gate, held=_held_power, held_when=lambda bound: _power_gate(bound) is None, line=_power_line, through_zero=lambda bound: isinstance(bound['exponent'], int | float) and bound['exponent'] > 0, complex_values=True)",
            ("> 0", ">= 0"),
            "of 0, which makes it affine, it is not asked",
        ),
        (
            "jets/rules/elementwise.py",
            "slope = rule(Series.variate(zero, torch.ones_like(zero), 1)).coefficient(1)",
            (" 1))", " 2))"),
            "an order more, which is not read",
        ),
        ("jets/rules/elementwise.py", "if exponent < 0:", ("<", "<="), "0 does not come here"),
        (
            "jets/rules/elementwise.py",
            "if order == 0 or not (b.varies or (isinstance(a, Series) and a.varies)):",
            (
                "or not (b.varies or (isinstance(a, Series) and a.varies))",
                "and (not (b.varies or (isinstance(a, Series) and a.varies)))",
            ),
            "zeros, worked out",
        ),
        (
            "jets/rules/elementwise.py",
            "small = z.abs() < _NEARLY_ZERO if start else z == 0",
            ("<", "<="),
            "as good a bound",
        ),
        (
            "jets/rules/composite.py",
            "if p < len(rows) - 1:",
            ("<", "<="),
            "no whole p comes here, unless above 64",
        ),
        *(
            ("jets/rules/composite.py", line, (" p > 0", more), "neither 0 nor 1 comes here")
            for more in (" p >= 0", " p > 1")
            for line in (
                "if p > 0 and float(p).is_integer() and (p <= 64):",
                "return _level_at_zero(signed, lambda rows: elementary.power(rows, p)) if p > 0 else elementary.power(signed, p)",
                "extreme = first.abs().amax(dims, True) if p > 0 else first.abs().amin(dims, True)",
            )
        ),
        (
            "jets/rules/composite.py",
            "if p > 0 and float(p).is_integer() and (p <= 64):",
            ("p <= 64", "p < 64"),
            "as good a bound",
        ),
        (
            "jets/rules/composite.py",
            "if p > 0 and float(p).is_integer() and (p <= 64):",
            ("64", "65"),
            "as good a bound",
        ),
        *(
            (
                "jets/rules/composite.py",
                "moves = sum((row != 0 for row in rows[1:] if row is not None), torch.full_like(first, p < 0, dtype=torch.bool))",
                change,
                "neither 0 nor 1 comes here",
            )
            for change in (("p < 0", "p <= 0"), ("p < 0", "p < 1"))
        ),
        (
            "jets/rules/composite.py",
            "demand(torch.where(moves, first, 1.0), nonzero, f'under a norm of order {p} no entry that varies may be 0')",
            ("1.0", "2.0"),
            "any number but 0",
        ),
        (
            "jets/rules/composite.py",
            "rows = f([torch.where(zero, 1.0, first), *x[1:]])",
            ("1.0", "2.0"),
            "any number but 0, for rows that are written over",
        ),
        (
            "jets/rules/composite.py",
            "elif p in (1, math.inf, -math.inf):",
            ("1", "2"),
            "the general way, to the same rows",
        ),
        (
            "jets/rules/composite.py",
            "return Series.of_rows([moment.coefficient(0), moment.coefficient(1) / 2], order, moment.coefficient(0))",
            ("[moment.coefficient(0)", "[moment.coefficient(1)"),
            "the operator's own value takes its place",
        ),
        (
            "jets/rules/composite.py",
            "rows = elementary.sqrt([elementary.head(rows), *rows[1:]])",
            ("[1:]", "[2:]"),
            "at order 0 there are no more rows",
        ),
        (
            "jets/frozen.py",
            "return Series.of_rows([first.coefficient(0), slope], 1, first.coefficient(0))",
            ("t(0))", "t(1))"),
            "it is asked for its shape and type alone",
        ),
        ("jets/frozen.py", "first = lines[0]", ("0", "1"), "they have one value at the centre"),
        (
            "jets/frozen.py",
            "behind = Depth(depth.gates + 1) if chosen and gate == 'gate' else depth",
            ("+ 1", "+ 2"),
            "all are counted so",
        ),
        ("jets/frozen.py", "maps: int = 0", ("0", "1"), "all are counted from one more"),
        (
            "jets/rules/composite.py",
            "return Series.of_rows([moment.coefficient(0), moment.coefficient(1) / 2], order, moment.coefficient(0))",
            ("(0))", "(1))"),
            "it is asked for its shape and type alone",
        ),
        (
            "algebra/patterns.py",
            "merged[state] = same.setdefault((state in self._ends, frozenset(onward.items())), state)",
            (" i", " not i"),
            "the same classes of states",
        ),
        ("algebra/patterns.py", "starts = 0", ("0", "1"), "the bit of the first pattern, which is set in any case"),
        (
            "jets/rules/complex.py",
            "if order == 0 or not z.varies:",
            ("or not z.varies", "and (not z.varies)"),
            "zeros, worked out",
        ),
        ("jets/code.py", "@lru_cache(maxsize=512)", ("2", "3"), "as good a bound"),
        ("jets/recorded.py", "self._count += 1", ("1", "2"), "numbers with gaps"),
        ("jets/recorded.py", "self._count = 1", ("1", "2"), "numbers with gaps"),
        (
            "jets/recorded.py",
            "if len(makes) == 1 and isinstance(made, Tensor):",
            ("==", "!="),
            "the way of several results, to the same value",
        ),
        (
            "jets/recorded.py",
            "if len(makes) == 1 and isinstance(made, Tensor):",
            ("1", "2"),
            "the way of several results, to the same value",
        ),
        (
            "jets/recording.py",
            "shared = torch.empty(0, dtype=tensor.dtype, device=tensor.device)",
            ("0", "1"),
            "its memory is exchanged for the tensor's",
        ),
        ("jets/code.py", "_LIMIT = 4096", ("6", "7"), "as good a bound"),
        (
            "jets/code.py",
            "if type(value) not in _PLAIN and (value is _ABSENT or has_series(value)):",
            (" and ", " or "),
            "interpreted, to the same values",
        ),
        (
            "jets/code.py",
            "if type(value) in (bool, int, str, type(None)) or (type(value) is float and math.isfinite(value)):",
            (" or ", " and "),
            "bound to names, as other values are",
        ),
        (
            "jets/code.py",
            "return f'[{inner}]' if isinstance(value, list) else f'({inner})'",
            ("if i", "if not i"),
            "operators take both",
        ),
        (
            "algebra/passages.py",
            "if passage.reads < point:",
            ("<", "<="),
            "from a point to itself there is a way",
        ),
        ("algebra/formulas.py", "FORMULA_BUDGET = 256", ("256", "257"), "as good a budget"),
        ("algebra/formulas.py", "together: bool = False", ("False", "True"), "without an order it is not read"),
        ("algebra/formulas.py", "if point > 0:", (">", ">="), "a factor that nothing after it reads"),
        (
            "algebra/formulas.py",
            "more = f'take budget={number}' if number < COUNTABLE else 'all as their generating_function'",
            ("<", "<="),
            "as good a bound",
        ),
        (
            "algebra/formulas.py",
            "return cast(sp.Eq, sp.Eq(sp.Symbol('output'), sp.Add(*terms, sp.Symbol('delta')), evaluate=False))",
            ("False", "True"),
            "of two sides that differ this makes no other equation",
        ),
        (
            "algebra/paths.py",
            "_hash: int = field(init=False, repr=False, compare=False)",
            ("compare=False", "compare=True"),
            "equal where all else is",
        ),
        ("algebra/patterns.py", "together: bool = False", ("False", "True"), "without an order it is not read"),
        ("algebra/patterns.py", "bit = 0", ("0", "1"), "a bit that no state has"),
        ("algebra/patterns.py", "bit += 1", ("1", "2"), "a bit that no state has"),
        ("algebra/patterns.py", "if last > 1:", (">", ">="), "nothing lies before a gap that comes first"),
        ("algebra/patterns.py", "if last > 1:", ("1", "2"), "states are left apart from which the same goes on"),
        (
            "algebra/patterns.py",
            "self._spans.append((1 << first + last) - (1 << first))",
            (") - (", ") + ("),
            "states are left apart from which the same goes on",
        ),
        (
            "algebra/patterns.py",
            "self._spans.append((1 << first + last) - (1 << first))",
            ("((1", "((2"),
            "what lies behind the last gap stays in any case",
        ),
        (
            "algebra/patterns.py",
            "self._spans.append((1 << first + last) - (1 << first))",
            ("- (1", "- (2"),
            "states are left apart from which the same goes on",
        ),
        (
            "algebra/patterns.py",
            "for state in range(len(self._next) - 1, -1, -1):",
            ("- 1,", "- 2,"),
            "states are left apart from which the same goes on",
        ),
        (
            "algebra/patterns.py",
            "for state in range(len(self._next) - 1, -1, -1):",
            ("-1, -1)", "-2, -1)"),
            "the last state is looked at twice",
        ),
        (
            "algebra/patterns.py",
            "for state in range(len(self._next) - 1, -1, -1):",
            ("-1, -1)", "-1, -2)"),
            "states are left apart from which the same goes on",
        ),
        (
            "jets/interpreter.py",
            "def evaluate(nodes: Iterable[fx.Node], values: dict[fx.Node, Any], order: int=0, keep: Collection[fx.Node] | None=None, frozen: Freeze | None=None, out: Mapping[fx.Node, Tensor] | None=None, constants: Collection[fx.Node]=()) -> dict[fx.Node, Any]:",
            ("order: int=0", "order: int=1"),
            "interpreted, to the same values",
        ),
        (
            "jets/registry.py",
            "through_zero: bool | Callable[[Mapping[str, Any]], bool] = False",
            ("False", "True"),
            "each entry says it, but for those that are constant on pieces, of which it is not asked",
        ),
        (
            "jets/registry.py",
            "return tuple((f'argument{i}' for i in range(8)))",
            ("8", "9"),
            "names for more arguments than there are",
        ),
        ("jets/registry.py", "complex_values: bool = False", ("False", "True"), "each entry says it"),
        (
            "jets/rules/bilinear.py",
            "rows: list[Tensor | None] = [None] * (order + 1)",
            ("+ 1", "+ 2"),
            "a row more, which is dropped",
        ),
        (
            "jets/rules/bilinear.py",
            "lowest = next((row for row in rows if row is not None), None)",
            ("is not", "is"),
            "a product more, which is asked for its shape alone",
        ),
        ("jets/rules/bilinear.py", "if x.start > 0:", (">", ">="), "added in the general way: the same sum"),
        *(
            (
                "jets/rules/bilinear.py",
                "if start > order or not all((isinstance(value, Series) and value.stop - value.start > 1 for value in (a, b))):",
                change,
                "one coefficient in the general way, or none above the order in the other: the same rows",
            )
            for change in (("start > o", "start >= o"), (" > 1", " >= 1"))
        ),
        *(
            (
                "jets/rules/bilinear.py",
                "rows = [dropped(product) for product in _contracted(left, right, order + 1 - start)]",
                change,
                "products above the order, which are dropped",
            )
            for change in (("- start", "+ start"), ("+ 1", "+ 2"))
        ),
        (
            "jets/rules/bilinear.py",
            "return x.like(op(x.coefficients, False))",
            ("False", "True"),
            "without a constant both are the same",
        ),
        *(
            (
                "algebra/advice.py",
                "return f\"{'-' * (top < 0)}2^{math.log2(abs(top)) - math.log2(bottom):.1f}\"",
                change,
                "it is a whole number, and 0 is told as it is",
            )
            for change in ((" < ", " <= "), ("< 0", "< 1"))
        ),
        *(
            ("jets/rules/linear.py", line, ("False", "True"), "it is not read")
            for line in (
                "def _expand(order: int, x: Series, size: Sequence[int], *, implicit: bool=False) -> Series:",
                "def _copy(order: int, target: Any, source: Any, non_blocking: bool=False) -> Any:",
                "def _gather(order: int, x: Series, dim: int, chosen: Tensor, *, sparse_grad: bool=False) -> Series:",
            )
        ),
        (
            "jets/rules/linear.py",
            "if x.apart:",
            ("if x", "if not x"),
            "one by one or together: the same sums",
        ),
        (
            "jets/rules/linear.py",
            "if value == 0 or stack.shape[0] == 1:",
            (" or ", " and "),
            "the general way, to the same rows",
        ),
        *(
            (
                "jets/rules/linear.py",
                "return not places or places[-1] - places[0] == len(places) - 1",
                change,
                "one coefficient after the other: the same rows",
            )
            for change in ((" or ", " and "), ("] - ", "] + "), ("- 1", "- 2"))
        ),
        (
            "jets/rules/linear.py",
            "rows = aten.constant_pad_nd.default(x.span(0, x.stop), pad, 0)",
            ("pad, 0", "pad, 1"),
            "what is put around is written over",
        ),
        ("jets/function.py", "_MOST = 8", ("8", "9"), "as good a number"),
        *(
            (f"jets/{module}.py", "@dataclass(frozen=True, eq=False)", ("eq=False", "eq=True"), "no two are compared")
            for module in ("function", "fusion")
        ),
        (
            "jets/fusion.py",
            "self._compiled[shared] = torch.compile(module, dynamic=False, **self._options)",
            ("False", "True"),
            "each is called for the shapes alone that it was made for",
        ),
        ("algebra/sizes.py", "arity: int = 0", ("0", "1"), "it is read of functions alone, which say it"),
        ("algebra/sizes.py", "@lru_cache(maxsize=4096)", ("4096", "4097"), "as good a number"),
        (
            "algebra/sizes.py",
            "if isinstance(value, complex) or not -LARGEST < value < LARGEST or "
            "getattr(value, 'denominator', 1) >= LARGEST:",
            ("r', 1)", "r', 2)"),
            "what has no denominator needs one below the largest",
        ),
        *(
            (
                "jets/totals.py",
                "if (a.stop - a.start, -a.first.numel()) > (b.stop - b.start, -b.first.numel()):",
                change,
                "of either factor the sums may be taken; where the other has fewer rows, it takes a few reads less",
            )
            for change in ((" (a", " not (a"), (" > ", " >= "), ("a.stop - ", "a.stop + "), ("b.stop - ", "b.stop + "))
        ),
        ("jets/totals.py", "@dataclass(frozen=True, eq=False)", ("eq=False", "eq=True"), "no two are compared"),
        (
            "jets/totals.py",
            "return (torch.zeros_like(a.first * b.first) if found is None else found).to(dtype)",
            ("*", "+"),
            "it is asked for its shape alone",
        ),
        (
            "jets/captured.py",
            "FEW = 24",
            ("4", "5"),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "_KINDS = 4",
            ("4", "5"),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "LARGE = 2 ** 23",
            (" 2 ", " 3 "),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "LARGE = 2 ** 23",
            ("3", "4"),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "MOVED = 2 ** 26",
            (" 2 ", " 3 "),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "MOVED = 2 ** 26",
            ("6", "7"),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "if collects:",
            (" c", " not c"),
            "on a CUDA device alone, where tests are marked so",
        ),
        (
            "jets/captured.py",
            "@dataclass(eq=False)",
            ("False", "True"),
            "no two are compared",
        ),
        (
            "jets/captured.py",
            "return device.type != 'cuda' or (torch.cuda.current_stream(device) == torch.cuda.default_stream(device) and (not torch.cuda.is_current_stream_capturing()))",
            ("and (not torch.cuda.is_current_stream_capturing()", "or not torch.cuda.is_current_stream_capturing("),
            "on a CUDA device alone, where tests are marked so",
        ),
        (
            "jets/captured.py",
            "return value.data_ptr() if isinstance(value, Tensor) else 0",
            ("0", "1"),
            "what is no tensor stays where it is",
        ),
        (
            "jets/captured.py",
            "made = torch.empty(0, dtype=like.dtype, device=owner.device)",
            ("0", "1"),
            "its memory is exchanged for the owner's",
        ),
        (
            "jets/captured.py",
            "return 'much of its arguments moves' if sum((each.nbytes for each in moved)) > MOVED else ''",
            ("> ", ">= "),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "self._bytes, self._launches = (0, 0)",
            ("(0,", "(1,"),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "if not self._found and self._bytes > large * self._launches:",
            ("> ", ">= "),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "drops = bound_to(func, args, kwargs).get('dropout_p', 1)",
            ("1", "2"),
            "it is asked whether there is any",
        ),
        (
            "jets/captured.py",
            "return device.type != 'cuda' or (torch.cuda.current_stream(device) == torch.cuda.default_stream(device) and (not torch.cuda.is_current_stream_capturing()))",
            (" ==", " !="),
            "on a CUDA device alone, where tests are marked so",
        ),
        (
            "jets/captured.py",
            "return value.untyped_storage().data_ptr() or -1",
            ("1", "2"),
            "no memory is there",
        ),
        (
            "jets/captured.py",
            "if len(self._known) >= _KINDS:",
            (">=", ">"),
            "as good a number",
        ),
        (
            "jets/captured.py",
            "flat = torch.empty(0, dtype=torch.uint8, device=result.device)",
            ("0", "1"),
            "its memory is exchanged for the result's",
        ),
        (
            "jets/captured.py",
            "pool = next((other.pool() for other in [*_ALIVE] if _ALIVE[other] == device), None)",
            (" ==", " !="),
            "on a CUDA device alone, where tests are marked so",
        ),
        (
            "jets/captured.py",
            "if any((0 in each.stride() and each.numel() > 1 for each in moved)):",
            ("> ", ">= "),
            "run as it is, to the same values",
        ),
        (
            "jets/captured.py",
            "graph.capture_begin(*(() if pool is None else (pool,)), capture_error_mode='thread_local')",
            (" p", " not p"),
            "on a CUDA device alone, where tests are marked so",
        ),
        (
            "jets/captured.py",
            "warnings.warn(f'from here on kernels are launched one by one, for a CUDA graph could not be captured: {error}', stacklevel=2)",
            ("2", "3"),
            "it is the same warning",
        ),
        (
            "jets/captured.py",
            "if any((0 in each.stride() and each.numel() > 1 for each in moved)):",
            ("1", "2"),
            "it cannot be copied, so that it is not captured either",
        ),
        (
            "jets/captured.py",
            "graph.capture_begin(*(() if pool is None else (pool,)), capture_error_mode='thread_local')",
            (" N", " not N"),
            "on a CUDA device alone, where tests are marked so",
        ),
        (
            "jets/captured.py",
            "self._few, self._large = (2, 8 * LARGE) if decides else (FEW, LARGE)",
            ("8", "9"),
            "as good a number",
        ),
    )
}
"""By module and change, as they print."""
