//! Tables of structs, as tensors of whole numbers.
//!
//! Kernels read and write some structs: how a row is sampled, its statistics, a verdict. A tensor holds one struct per row,
//! as numbers of the struct's alignment.

use bytemuck::Pod;
use candle_core::{DType, Device, Result, Tensor, WithDType};
use flexdraft::kernels::acceptance::{Verdict, Verify};
use flexdraft::kernels::sampling::{LogitEdit, RowEdits, RowSampling, RowStats};
use flexdraft::kernels::selection::Draft;

use crate::error::Error;

/// A struct that kernels read or write, and the numbers that hold it in a tensor.
pub trait TableRow: Pod {
    /// The type of the numbers: [`i64`] if the struct is aligned to 8 bytes, [`i32`] if it is aligned to 4 bytes.
    type Number: WithDType + Pod;
    /// The name of the struct, for errors.
    const NAME: &'static str;
    /// The number of numbers per struct.
    const COLUMNS: usize = size_of::<Self>() / size_of::<Self::Number>();
}

macro_rules! table_rows {
    ($($row:ident: $number:ident),* $(,)?) => {$(
        impl TableRow for $row {
            type Number = $number;
            const NAME: &'static str = stringify!($row);
        }
        const _: () = assert!(
            size_of::<$row>().is_multiple_of(size_of::<$number>()) && align_of::<$row>() <= align_of::<$number>()
        );
    )*};
}

table_rows![
    RowSampling: i64,
    RowStats: i32,
    RowEdits: i32,
    LogitEdit: i32,
    Verify: i64,
    Verdict: i64,
    Draft: i64,
];

/// Returns a table of `rows` on `device`, `[rows, columns]`: [`RowSampling`] has 5 columns of i64, [`Verify`] 6, [`Verdict`]
/// and [`Draft`] 4; [`RowStats`] has 12 columns of i32.
///
/// # Errors
///
/// The errors of candle's copies.
pub fn table<T: TableRow>(rows: &[T], device: &Device) -> Result<Tensor> {
    let numbers: Vec<T::Number> = bytemuck::pod_collect_to_vec(rows);
    Tensor::from_vec(numbers, (rows.len(), T::COLUMNS), device)
}

/// Returns the rows of a table on the host. The host waits for the device.
///
/// # Errors
///
/// [`Error::Shape`] and [`Error::Dtype`] for a tensor that is no table of `T`, and the errors of candle's copies.
pub fn read_table<T: TableRow>(table: &Tensor) -> Result<Vec<T>> {
    let (kernel, operand) = ("read_table", T::NAME);
    if table.dtype() != T::Number::DTYPE {
        let expected = format!("{:?}", T::Number::DTYPE);
        return Err(Error::Dtype { kernel, operand, expected, found: table.dtype() }.into());
    }
    match *table.dims() {
        [_, columns] if columns == T::COLUMNS => {
            let numbers = table.flatten_all()?.to_vec1::<T::Number>()?;
            Ok(bytemuck::pod_collect_to_vec(&numbers))
        }
        _ => {
            let (expected, found) = (format!("[any, {}]", T::COLUMNS), table.dims().to_vec());
            Err(Error::Shape { kernel, operand, expected, found }.into())
        }
    }
}

/// Returns the tokens of a table of [`RowStats`], `[rows]` of i32. The host does not wait.
///
/// # Errors
///
/// The errors of candle's copies.
pub fn tokens(stats: &Tensor) -> Result<Tensor> {
    stats.narrow(1, 0, 1)?.contiguous()?.flatten_all()
}

/// Returns the type and the number of columns of a table.
pub(crate) fn form<T: TableRow>() -> (DType, usize) {
    (T::Number::DTYPE, T::COLUMNS)
}
