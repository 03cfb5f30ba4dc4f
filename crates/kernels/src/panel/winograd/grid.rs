//! Where the tiles of results lie.

use crate::conv::Conv2dParams;

/// How results divide into tiles. Results whose windows are dilated depend on pixels that are as far apart, so that a
/// dilation of 2 makes four convolutions that lie in each other.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Convolutions in each other, down and across.
    apart: [usize; 2],
    /// Between the pixels of each.
    pub steps: [usize; 2],
    /// Tiles of each.
    tiles: [usize; 2],
}

impl Grid {
    /// Of `out` results in tiles of `side` by `side`.
    pub fn new(p: &Conv2dParams, out: [usize; 2], side: usize) -> Grid {
        let tiles = |i: usize| out[i].div_ceil(p.dilations[i]).div_ceil(side);
        let apart = |i: usize| p.dilations[i].min(out[i]);
        Grid { apart: [apart(0), apart(1)], steps: p.dilations, tiles: [tiles(0), tiles(1)] }
    }

    /// The number of tiles of an image: those of a line lie one behind another.
    pub fn tiles(&self) -> usize {
        self.apart[0] * self.apart[1] * self.tiles[0] * self.tiles[1]
    }

    /// The image of a tile, the row and column of its first result, which may lie behind the last ones, and how many tiles follow
    /// it in a line, with it.
    pub fn place(&self, tile: usize, side: usize) -> (usize, [usize; 2], usize) {
        let ([rows, columns], [down, across]) = (self.apart, self.tiles);
        let line = tile / across / columns;
        let result = |i: usize, tile: usize, first: usize| tile * side * self.steps[i] + first;
        let y = result(0, line % down, line / down % rows);
        (line / down / rows, [y, result(1, tile % across, tile / across % columns)], across - tile % across)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_each_result_once() {
        for (out, dilations, side) in [
            ([7, 9], [1, 1], 4),
            ([28, 28], [4, 4], 2),
            ([13, 5], [3, 12], 3),
            ([2, 30], [5, 2], 4),
            ([1, 1], [9, 9], 2),
        ] {
            let zeros = Conv2dParams {
                n: 2,
                c: 1,
                h: 1,
                w: 1,
                oc: 1,
                kh: 3,
                kw: 3,
                strides: [1; 2],
                pads: [0; 4],
                dilations,
                groups: 1,
            };
            let grid = Grid::new(&zeros, out, side);
            let mut seen = vec![0; 2 * out[0] * out[1]];
            let mut following = 0;
            for tile in 0..2 * grid.tiles() {
                let (image, [y, x], left) = grid.place(tile, side);
                assert!(following <= 1 || left == following - 1, "tiles of a line lie one behind another");
                following = left;
                for (i, j) in (0..side).flat_map(|i| (0..side).map(move |j| (i, j))) {
                    let (y, x) = (y + i * dilations[0], x + j * dilations[1]);
                    if y < out[0] && x < out[1] {
                        seen[(image * out[0] + y) * out[1] + x] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{out:?} {dilations:?} {side}");
        }
    }
}
