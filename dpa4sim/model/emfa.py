"""EMFA: edge-conditioned, multi-focus, attention SO(2) convolution.  Paper section 4.2.3.

| paper | here |
|---|---|
| low-rank edge-node product, Eq. 16-18 | `EdgeProduct` |
| SO(2) layers, Eq. 19-21  | `SO2Stack` |
| cross-focus competition, Eq. 22-24 | `EMFA._competition` |
| envelope-gated attention, Eq. 25-28 | `EMFA._attention` |
| output gate, Eq. 29 | `EMFA._output_gate` |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from dpa4sim.config import DPA4Config
from dpa4sim.kernels.edge_convolution import Plan, edge_convolution
from dpa4sim.kernels.edge_order import Listed
from dpa4sim.kernels.edge_training import Passes, TrainingPlan, convolve
from dpa4sim.kernels.frame_products import FrameShape
from dpa4sim.kernels.row_chunks import pair_dot
from dpa4sim.kernels.so2_training import StackShape
from dpa4sim.kernels.triton_plan import PackedStack, TritonPlan
from dpa4sim.model.edge_features import EdgeFeatures, FrameLayout
from dpa4sim.model.edge_product import EdgeProduct, frame_matrix
from dpa4sim.model.embedding import sum_edges
from dpa4sim.model.frames import degree_of_lm
from dpa4sim.model.grid import MessageGrid
from dpa4sim.model.linear import DegreeLinear, truncated_normal
from dpa4sim.model.norm import root_mean_square
from dpa4sim.model.so2_stack import SO2Stack

COMPETITION_FLOOR = 0.02
"""Share of the focus weights that is spread evenly; the paper gives no value."""


class EMFA(nn.Module):
    """The convolution of one block: (N, (L + 1)^2, C) -> the same, zero at the start."""

    degree_of_lm: Tensor
    frame_degree: Tensor
    frame_order: Tensor
    frame_mask: Tensor
    frame_lift: Tensor

    def __init__(self, config: DPA4Config, max_degree: int, max_order: int) -> None:
        super().__init__()
        F, Cf, C, A = config.n_focus, config.focus_width, config.channels, config.n_heads
        H, bias = F * Cf, config.bias
        self.n_focus, self.width, self.n_heads = F, Cf, A
        self.epsilon = config.epsilon
        self.mix_in = DegreeLinear(max_degree, C, H, bias)
        self.mix_out = DegreeLinear(max_degree, H, C, bias, zero=True)
        self.profile_mix = None
        if H != C:
            self.profile_mix = nn.Parameter(truncated_normal(torch.empty(C, H)))
        self.product = EdgeProduct(config, max_degree, max_order)
        self.stack = SO2Stack(config, max_degree, max_order)
        if F > 1:
            self.focus_weight = nn.Parameter(truncated_normal(torch.empty(Cf, F)))
            self.focus_norm = nn.Parameter(torch.ones(F, Cf)) if config.edge_norm else None
            self.focus_bias = nn.Parameter(torch.zeros(F)) if bias else None
        if A:
            self.query = nn.Parameter(truncated_normal(torch.empty(Cf, H)))
            self.key = nn.Parameter(truncated_normal(torch.empty(Cf, H)))
            self.query_key_norm = nn.Parameter(torch.ones(F, Cf))
            self.radial_logit = nn.Parameter(truncated_normal(torch.empty(Cf, F, A)))
            self.null_logit = nn.Parameter(torch.full((F, A), 0.5413))
            self.gate_norm = nn.Parameter(torch.ones(F, Cf))
            self.gate_weight = nn.Parameter(truncated_normal(torch.empty(Cf, F, A)))
        self.message_grid = None
        if config.message_grid:
            self.message_grid = MessageGrid(
                max_degree,
                min(config.grid_order, max_degree),
                Cf,
                F,
                config.message_grid_operation,
                config.message_grid_branches,
                bias,
            )
        self.no_kernel_because = ""
        if bias or config.so2_norm:
            self.no_kernel_because = "biases" if bias else "SO(2) norms"
        elif not self.product.terms:
            self.no_kernel_because = "an edge product without a rank"
        self.passes: Passes | None = None
        self.compiled_loops = False
        self._made: tuple[list[Any], dict[Any, Any]] = [], {}
        self.product_dtype: torch.dtype | None = None
        lm = torch.tensor(degree_of_lm(max_degree))
        self.register_buffer("degree_of_lm", lm, persistent=False)
        layout = FrameLayout.build(max_degree, max_order)
        for name in ("degree", "order", "mask", "lift"):
            self.register_buffer(f"frame_{name}", getattr(layout, name), persistent=False)

    @property
    def has_kernel(self) -> bool:
        """Whether the hand-written kernels cover this convolution's options."""
        return not self.no_kernel_because

    @property
    def layout(self) -> FrameLayout:
        """Index tables of the edge frame on this module's device."""
        return FrameLayout(self.frame_degree, self.frame_order, self.frame_mask, self.frame_lift)

    def forward(
        self, x: Float[Tensor, "atom lm channel"], edges: EdgeFeatures
    ) -> Float[Tensor, "atom lm channel"]:
        """Messages along the edges, summed at their centers.  Equivariant; silent at the cutoff."""
        hidden = self.mix_in(x)
        scalars = hidden[:, 0].unflatten(1, (self.n_focus, self.width))
        weight = self._attention(scalars, edges) if self.n_heads else self._scatter(edges)
        trains = edges.learning and self.passes is not None
        by_hand = edges.offsets is not None or edges.graph is not None
        if trains or (self.has_kernel and by_hand and not edges.learning):
            message = self._messages_by_kernel(hidden, weight, edges)
        else:
            message = self._messages(hidden, weight, edges)
        if self.n_heads:
            message = message * self._output_gate(scalars)[:, None]
        if self.message_grid is not None:
            message = self.message_grid(message, hidden)
        return self.mix_out(message)

    def _messages(
        self, hidden: Tensor, weight: Float[Tensor, "edge focus head"], edges: EdgeFeatures
    ) -> Float[Tensor, "atom lm focus_channel"]:
        """Reference: every step on all edges, differentiable to any order."""
        layout = self.layout
        local = self.product(hidden, edges, layout, self.profile_mix)
        if self.n_focus > 1:
            scalars = torch.stack([part[:, : self.width] for part in local], 1)
            weight = weight * self._competition(scalars)[:, :, None]
        bias_factor = self._bias_factor(edges)
        lift = frame_matrix(edges, layout) * layout.lift
        messages = []
        for focus, part in enumerate(local):
            factor = None if bias_factor is None else bias_factor[:, focus]
            part = self.stack(part, focus, factor).unflatten(1, (-1, self.width))
            alpha = weight[:, focus]
            if alpha.shape[1] == 1:
                message = torch.bmm((lift * alpha[:, :, None]).transpose(1, 2), part)
            else:
                heads = part.unflatten(2, (alpha.shape[1], -1)) * alpha[:, None, :, None]
                message = torch.bmm(lift.transpose(1, 2), heads.flatten(2))
            messages.append(sum_edges(message, edges.center, hidden.shape[0]))
        return torch.cat(messages, -1)

    def _messages_by_kernel(
        self, hidden: Tensor, weight: Float[Tensor, "edge focus head"], edges: EdgeFeatures
    ) -> Float[Tensor, "atom lm focus_channel"]:
        """The same by the hand-written kernels of training or of inference."""
        product, messages = self.product, []
        kernel = product.kernel(edges, self.profile_mix)
        parts = [product.node_features(hidden, focus) for focus in range(self.n_focus)]
        if self.n_focus > 1:
            scalars = torch.stack([product.scalars(kernel, part, edges) for part in parts], 1)
            weight = weight * self._competition(scalars)[:, :, None]
        training = None
        if edges.learning and self.passes is not None:
            training = self._training_plan(self.passes, edges)
        for focus, part in enumerate(parts):
            inputs = part, kernel, edges.rows, weight[:, focus]
            if training is not None:
                messages.append(convolve(*inputs, self.stack.layers(focus), training))
            elif edges.graph is not None:
                from dpa4sim.kernels.triton_convolution import triton_edge_convolution

                plan = self._plan(focus, edges)
                packed = self._frozen(
                    ("packed", focus), partial(PackedStack.build, plan.layers, self.width)
                )
                plan = TritonPlan.of(plan, edges.graph, edges.accuracy, packed)
                messages.append(triton_edge_convolution(*inputs, plan))
            else:
                messages.append(edge_convolution(*inputs, self._plan(focus, edges)))
        return torch.cat(messages, -1)

    def _plan(self, focus: int, edges: EdgeFeatures) -> Plan:
        return Plan(
            layers=self._frozen(focus, partial(self.stack.layers, focus)),
            width=self.width,
            terms=self.product.terms,
            max_degree=self.product.max_degree,
            max_order=self.product.max_order,
            lift=self.frame_lift,
            degree_of_lm=self.degree_of_lm,
            neighbor=edges.neighbor,
            offsets=edges.offsets or (),  # Triton's kernels do not read them
            keep_bytes=edges.keep_bytes,
            compiled=self.compiled_loops,
            precision=torch.get_float32_matmul_precision(),
        )

    def _frozen(self, name: Any, make: Callable[[], Any]) -> Any:
        """What follows from the stack's weights alone, made again only when they have changed."""
        key = [(w.data_ptr(), w._version, w.dtype, w.device) for w in self.stack.parameters()]
        if key != self._made[0]:
            self._made = key, {}
        found = self._made[1]
        if name not in found:
            found[name] = make()
        return found[name]

    def _training_plan(self, passes: Passes, edges: EdgeFeatures) -> TrainingPlan:
        product, C = self.product, self.width
        L, M = product.max_degree, product.max_order
        return TrainingPlan(
            frame=FrameShape(C, product.terms, L, M, self.frame_lift, self.degree_of_lm),
            stack=StackShape(C, L, M, self.product_dtype, isinstance(edges.order, Listed)),
            n_layers=self.stack.n_layers,
            scaled=len(self.stack.scales) > 0,
            passes=passes,
            order=edges.order,
        )

    def _scatter(self, edges: EdgeFeatures) -> Float[Tensor, "edge focus one"]:
        """n_i eta_j s(r_ij): the plain sum."""
        weight = edges.degree_scale.index_select(0, edges.center) * edges.gated_weight
        return weight[:, None, None].expand(-1, self.n_focus, 1)

    def _attention(
        self, scalars: Float[Tensor, "atom focus channel"], edges: EdgeFeatures
    ) -> Float[Tensor, "edge focus head"]:
        """Softmax over a center's edges and a null edge, gated by the envelope.  Eq. 25-28

            w_e = s^2 eta exp(a_e) / (softplus(z) + eps + sum_e' s^2 eta exp(a_e'))

        An edge at the cutoff has weight exactly 0, and it leaves three times differentiably.
        """
        F, A = self.n_focus, self.n_heads
        normed = root_mean_square(scalars, self.query_key_norm, self.epsilon)
        query = self._per_focus(normed, self.query).unflatten(2, (A, -1))
        key = self._per_focus(normed, self.key).unflatten(2, (A, -1))
        radial = torch.einsum("cfa,fcn->nfa", self.radial_logit, self._profile_columns())
        radial = edges.project(radial.flatten(1)[None])
        if edges.offsets is not None and not edges.learning:
            logit = pair_dot(query, key, edges.center, edges.neighbor)
        else:
            logit = query.index_select(0, edges.center) * key.index_select(0, edges.neighbor)
            logit = logit.sum(-1)
        logit = logit * (self.width // A) ** -0.5 + radial.unflatten(1, (F, A))
        null = (softplus(self.null_logit) + self.epsilon).log()
        top = null.detach().expand(scalars.shape[0], F, A).contiguous()
        index = edges.center[:, None, None].expand_as(logit)
        top = top.scatter_reduce(0, index, logit.detach(), "amax")
        strength = edges.weight * edges.gated_weight
        share = strength[:, None, None] * torch.exp(logit - top.index_select(0, edges.center))
        total = torch.exp(null - top) + sum_edges(share, edges.center, scalars.shape[0])
        return share / total.index_select(0, edges.center)

    def _output_gate(
        self, scalars: Float[Tensor, "atom focus channel"]
    ) -> Float[Tensor, "atom focus_channel"]:
        """Sigmoid of the center's scalars, one number per head.  Eq. 29"""
        normed = root_mean_square(scalars, self.gate_norm, self.epsilon)
        gate = torch.sigmoid(torch.einsum("nfc,cfa->nfa", normed, self.gate_weight))
        return gate.repeat_interleave(self.width // self.n_heads, -1).flatten(1)

    def _competition(
        self, scalars: Float[Tensor, "edge focus channel"]
    ) -> Float[Tensor, "edge focus"]:
        """Softmax over the focuses of an edge from its scalars, with a floor.  Eq. 22-24"""
        if self.focus_norm is not None:
            scalars = root_mean_square(scalars, self.focus_norm, self.epsilon)
        logit = torch.einsum("efc,cf->ef", scalars, self.focus_weight)
        if self.focus_bias is not None:
            logit = logit + self.focus_bias
        share = torch.softmax(logit, 1)
        return (1 - COMPETITION_FLOOR) * share + COMPETITION_FLOOR / self.n_focus

    def _bias_factor(self, edges: EdgeFeatures) -> Float[Tensor, "edge focus channel"] | None:
        if not self.stack.bias:
            return None
        profile = edges.profile(1)[:, 0]
        profile = profile if self.profile_mix is None else profile @ self.profile_mix
        factor = profile * edges.weight[:, None]
        return factor.unflatten(1, (self.n_focus, self.width))

    def _profile_columns(self) -> Float[Tensor, "focus channel profile"]:
        """Map of the profile's channels to each focus' channels."""
        total = self.n_focus * self.width
        identity = torch.eye(total, dtype=self.query.dtype, device=self.query.device)
        mixer = identity if self.profile_mix is None else self.profile_mix
        return mixer.unflatten(1, (self.n_focus, self.width)).permute(1, 2, 0)

    def _per_focus(
        self, x: Float[Tensor, "atom focus channel"], weight: Float[Tensor, "channel columns"]
    ) -> Float[Tensor, "atom focus channel"]:
        matrix = weight.unflatten(1, (self.n_focus, self.width)).transpose(0, 1)
        return torch.einsum("nfc,fcd->nfd", x, matrix)
