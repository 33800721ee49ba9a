//! AᵀA for a tall and narrow A: the innermost loop of every first pass. Not a general matrix product.
//!
//! A general product packs its factors before it multiplies them. Where A has few columns that costs as much as the product itself, so
//! they are multiplied where they lie: dot products of three columns with four, twelve sums in registers, along rows that stay in a core's
//! own cache. Wide or short matrices go to the general product, which is at its best there.

use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, MatMut, MatRef, Par};
use pulp::{Simd, WithSimd};

use super::coordinates::column;

/// Columns of a tile of the product, and its rows: with as many factors they fill sixteen registers.
const ACROSS: usize = 4;
const DOWN: usize = 3;
/// Columns up to which the general product is slower, on blocks of many rows.
const NARROW: usize = 128;
/// Rows a column from which adding up the registers no longer counts.
const TALL: usize = 3;

/// G ← G + AᵀA, lower triangle.
pub(super) fn symmetric_product(gram: MatMut<'_, f64>, rows: MatRef<'_, f64>) {
    let (count, width) = rows.shape();
    if (ACROSS..=NARROW).contains(&width) && count >= TALL * width && rows.row_stride() == 1 {
        let mut columns: [&[f64]; NARROW] = [&[]; NARROW];
        for (index, place) in columns[..width].iter_mut().enumerate() {
            *place = column(rows, index);
        }
        pulp::Arch::new().dispatch(Tiles { columns: &columns[..width], gram });
        return;
    }
    triangular::matmul(
        gram,
        BlockStructure::TriangularLower,
        Accum::Add,
        rows.transpose(),
        BlockStructure::Rectangular,
        rows,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
}

/// The product, tile by tile.
struct Tiles<'a> {
    columns: &'a [&'a [f64]],
    gram: MatMut<'a, f64>,
}

impl WithSimd for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { columns, mut gram } = self;
        let width = columns.len();
        for begin in (0..width).step_by(ACROSS) {
            // The last tile overlaps the one before, and only what is new in it is added.
            let left = begin.min(width - ACROSS);
            for start in (begin..width).step_by(DOWN) {
                let top = start.min(width - DOWN);
                let sums = tile(simd, &columns[left..left + ACROSS], &columns[top..top + DOWN]);
                for (column, sums) in (left..).zip(sums).skip(begin - left) {
                    for (row, sum) in (top..).zip(sums) {
                        if row >= start.max(column) {
                            gram[(row, column)] += sum;
                        }
                    }
                }
            }
        }
    }
}

/// The dot products of some columns with some others. Loops instead of maps: closures that the compiler does not inline lose the processor's
/// wide instructions.
#[inline(always)]
fn tile<S: Simd>(simd: S, across: &[&[f64]], down: &[&[f64]]) -> [[f64; DOWN]; ACROSS] {
    let rows = across[0].len();
    let whole = rows / S::F64_LANES;
    let (mut across_whole, mut across_rest): ([&[S::f64s]; ACROSS], [&[f64]; ACROSS]) = ([&[]; ACROSS], [&[]; ACROSS]);
    for index in 0..ACROSS {
        let (wide, rest) = S::as_simd_f64s(&across[index][..rows]);
        (across_whole[index], across_rest[index]) = (&wide[..whole], rest);
    }
    let (mut down_whole, mut down_rest): ([&[S::f64s]; DOWN], [&[f64]; DOWN]) = ([&[]; DOWN], [&[]; DOWN]);
    for index in 0..DOWN {
        let (wide, rest) = S::as_simd_f64s(&down[index][..rows]);
        (down_whole[index], down_rest[index]) = (&wide[..whole], rest);
    }
    let mut sums = [[simd.splat_f64s(0.0); DOWN]; ACROSS];
    for row in 0..whole {
        let mut down = [simd.splat_f64s(0.0); DOWN];
        for index in 0..DOWN {
            down[index] = down_whole[index][row];
        }
        for column in 0..ACROSS {
            let across = across_whole[column][row];
            for index in 0..DOWN {
                sums[column][index] = simd.mul_add_e_f64s(across, down[index], sums[column][index]);
            }
        }
    }
    if !rows.is_multiple_of(S::F64_LANES) {
        for column in 0..ACROSS {
            let across = simd.partial_load_f64s(across_rest[column]);
            for index in 0..DOWN {
                sums[column][index] = simd.mul_add_e_f64s(across, simd.partial_load_f64s(down_rest[index]), sums[column][index]);
            }
        }
    }
    let mut totals = [[0.0; DOWN]; ACROSS];
    for column in 0..ACROSS {
        for index in 0..DOWN {
            totals[column][index] = simd.reduce_sum_f64s(sums[column][index]);
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use faer::Mat;

    use super::*;

    #[test]
    fn every_shape_agrees_with_the_general_product() {
        for width in [1, 3, 4, 5, 6, 7, 8, 21, 22, 102, 129] {
            for rows in [0, 1, 7, 3 * width, 3 * width + 1, 3 * width + 7, 400] {
                // Small integers: every sum is exact, whatever its order.
                #[allow(clippy::cast_precision_loss)]
                let matrix = Mat::from_fn(rows, width, |row, column| ((row * 31 + column * 17) % 23) as f64 - 11.0);
                let expected = matrix.transpose() * &matrix;
                let mut gram = Mat::<f64>::zeros(width, width);
                symmetric_product(gram.as_mut(), matrix.as_ref());
                symmetric_product(gram.as_mut(), matrix.as_ref());
                for column in 0..width {
                    for row in 0..width {
                        let expected = if row >= column { 2.0 * expected[(row, column)] } else { 0.0 };
                        assert_eq!(gram[(row, column)], expected, "{rows}×{width} at {row}, {column}");
                    }
                }
            }
        }
    }
}
