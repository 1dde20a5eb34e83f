"""The edge-node product: bring a neighbour's features to the edge frame.  Paper Eq. 16-18."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dpa4sim.config import DPA4Config
from dpa4sim.model.edge_features import EdgeFeatures, FrameLayout
from dpa4sim.model.frames import degree_of_lm
from dpa4sim.model.linear import truncated_normal


class EdgeProduct(nn.Module):
    """Bring the neighbour's features to the edge frame and act on them by the edge.  Eq. 16-18

        x_e[l', m] = sum_l k_e[m; l, l']  sum_m' D^l_mm'(r_ij) h_j[l, m']

    The kernel k_e is a linear map of the radial-species profile; +m and -m share it.  "degree":
    one kernel for all channels.  "degree_channel": rank R, sum_r k_r B_r[c]; rank 0: a kernel for
    every channel.  "none": k = rho_l on the diagonal.

    Kernel and rotation are multiplied first: the features meet one small matrix per edge.
    """

    def __init__(self, config: DPA4Config, max_degree: int, max_order: int) -> None:
        super().__init__()
        self.mode, self.rank = config.edge_product, config.product_rank
        self.max_degree, self.max_order = max_degree, max_order
        self.n_focus, self.width = config.n_focus, config.focus_width
        total = self.n_focus * self.width
        self.sizes = [max_degree - order + 1 for order in range(max_order + 1)]
        n_kernel = sum(size * size for size in self.sizes)
        if self.mode == "degree" or (self.mode == "degree_channel" and self.rank):
            self.terms = self.rank if self.mode == "degree_channel" else 1
        else:
            self.terms = 0
        if self.mode != "none":
            columns = n_kernel * (self.terms or total)
            weight = torch.empty((max_degree + 1) * total, columns)
            self.weight = nn.Parameter(truncated_normal(weight))
        if self.mode == "degree_channel" and self.rank:
            basis = torch.ones(self.rank, total)
            self.channel_basis = nn.Parameter(basis)
        lm = torch.tensor(degree_of_lm(max_degree))
        for order in range(max_order + 1):
            local = (lm - order).clamp(min=0)
            self.register_buffer(f"source_{order}", local, persistent=False)

    def forward(
        self,
        x: Float[Tensor, "atom lm channel"],
        edges: EdgeFeatures,
        layout: FrameLayout,
        mixer: Float[Tensor, "channel_in channel"] | None,
    ) -> list[Float[Tensor, "edge row_channel"]]:
        """The edge features of each focus.

        Args:
            x: node features of all focuses side by side.
            mixer: map of the profile to the width of all focuses; None where they agree.
        """
        if self.terms:
            matrix = self._fold(self.kernel(edges, mixer), edges.rows)
            parts = (self.node_features(x, focus) for focus in range(self.n_focus))
            gathered = (part.index_select(0, edges.neighbor) for part in parts)
            return [torch.bmm(matrix, part).flatten(1) for part in gathered]
        rotated = self._rotate(x, edges, layout)
        if self.mode == "none":
            profile = edges.profile(self.max_degree + 1)
            profile = profile if mixer is None else profile @ mixer
            product = rotated * profile[:, layout.degree]
        else:
            product = self._per_channel(rotated, edges, mixer)
        focused = product.unflatten(2, (self.n_focus, self.width))
        return [focused[:, :, focus].flatten(1) for focus in range(self.n_focus)]

    def kernel(self, edges: EdgeFeatures, mixer: Tensor | None) -> Float[Tensor, "edge column"]:
        """Compact kernels of all orders, columns [l', r, l] in each."""
        return edges.project(self._profile_weight(mixer))

    def node_features(
        self, x: Float[Tensor, "atom lm channel"], focus: int
    ) -> Float[Tensor, "atom term_lm width"]:
        """One focus' features, once per term of the product and times its channel basis."""
        columns = slice(focus * self.width, (focus + 1) * self.width)
        part = x[:, :, columns]
        if self.mode == "degree_channel":
            basis = self.channel_basis[:, columns]
            part = torch.cat([part * basis[term] for term in range(self.terms)], 1)
        return part.contiguous()

    def scalars(
        self, kernel: Tensor, part: Float[Tensor, "atom term_lm width"], edges: EdgeFeatures
    ) -> Float[Tensor, "edge width"]:
        """Row l' = 0, m = 0 of the product alone."""
        size_lm, n = (self.max_degree + 1) ** 2, self.sizes[0]
        block = kernel[:, : self.terms * n].unflatten(1, (self.terms, n))
        block = block.index_select(2, self.get_buffer("source_0"))
        row = (block * edges.rows[:, None, 0, :size_lm]).flatten(1)
        return torch.bmm(row[:, None], part.index_select(0, edges.neighbor))[:, 0]

    def _fold(
        self, kernel: Float[Tensor, "edge column"], rows: Float[Tensor, "edge order lm"]
    ) -> Float[Tensor, "edge row term_lm"]:
        """Kernel times rotation; kernel columns are [l', r, l] in each order."""
        folded = []
        size_lm = (self.max_degree + 1) ** 2
        width = self.terms * size_lm
        by_order = rows[:, : 2 * self.max_order + 1, :size_lm].unbind(1)
        blocks = kernel.split([size * size * self.terms for size in self.sizes], 1)
        for order, (size, block) in enumerate(zip(self.sizes, blocks, strict=True)):
            block = block.unflatten(1, (size * self.terms, size))
            block = block.index_select(2, self.get_buffer(f"source_{order}"))
            for row in (0,) if order == 0 else (2 * order - 1, 2 * order):
                folded.append((block * by_order[row][:, None]).reshape(-1, size, width))
        return torch.cat(folded, 1)

    def _profile_weight(self, mixer: Tensor | None) -> Float[Tensor, "degree channel column"]:
        """Kernel weights per degree with columns [l', r, l] in each order (stored [l, l', r])."""
        weight = self.weight.unflatten(0, (self.max_degree + 1, -1))
        if mixer is not None:
            weight = mixer @ weight
        if not self.terms:
            return weight
        parts, start = [], 0
        for size in self.sizes:
            stop = start + size * size * self.terms
            block = weight[..., start:stop].unflatten(-1, (size, size, self.terms))
            parts.append(block.permute(0, 1, 3, 4, 2).flatten(2))
            start = stop
        return torch.cat(parts, -1)

    def _rotate(
        self, x: Tensor, edges: EdgeFeatures, layout: FrameLayout
    ) -> Float[Tensor, "edge row channel"]:
        return torch.bmm(frame_matrix(edges, layout), x.index_select(0, edges.neighbor))

    def _per_channel(
        self, rotated: Tensor, edges: EdgeFeatures, mixer: Tensor | None
    ) -> Float[Tensor, "edge row channel"]:
        kernel = edges.project(self._profile_weight(mixer))
        kernel = kernel.unflatten(1, (-1, self.n_focus * self.width))
        products, start, row = [], 0, 0
        for order, size in enumerate(self.sizes):
            block = kernel[:, start : start + size * size].unflatten(1, (size, size))
            for _ in range(1 if order == 0 else 2):
                source = rotated[:, row : row + size, None]
                products.append((source * block).sum(1))
                row += size
            start += size * size
        return torch.cat(products, 1)


def frame_matrix(edges: EdgeFeatures, layout: FrameLayout) -> Float[Tensor, "edge row lm"]:
    """The rotation of |m| <= M rows, zero outside each row's degree."""
    size = layout.mask.shape[1]
    return edges.rows[:, :, :size].index_select(1, layout.order) * layout.mask
