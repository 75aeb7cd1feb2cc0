//! Cells of Arrow columns as JSON.

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
    Time64NanosecondType, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, StructArray};
use arrow_schema::{DataType, TimeUnit};
use serde_json::{Map, Value, json};

/// Whether a column's cells have a form in JSON: all but decimals, durations, intervals, unions and
/// run-length encoded columns. A list or struct does if its parts do; of a struct, one part is
/// enough.
pub(super) fn has_json_value(kind: &DataType) -> bool {
    match kind {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _) => has_json_value(item.data_type()),
        DataType::Struct(fields) => fields.iter().any(|f| has_json_value(f.data_type())),
        DataType::Dictionary(_, value) => has_json_value(value),
        DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..)
        | DataType::Duration(_)
        | DataType::Interval(_)
        | DataType::Union(..)
        | DataType::RunEndEncoded(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => false,
        _ => true,
    }
}

macro_rules! number {
    ($array:expr, $index:expr, $type:ty) => {
        Value::from($array.as_primitive::<$type>().value($index))
    };
}

/// A cell. Dates and times are whole numbers in the column's unit, what is not finite is null, and
/// bytes are text where they are UTF-8, else `{"bytes": count}`. Null for a type of which
/// [`has_json_value`] is false.
pub(super) fn cell(array: &dyn Array, index: usize) -> Value {
    if array.is_null(index) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(index).into(),
        DataType::Int8 => number!(array, index, Int8Type),
        DataType::Int16 => number!(array, index, Int16Type),
        DataType::Int32 => number!(array, index, Int32Type),
        DataType::Int64 => number!(array, index, Int64Type),
        DataType::UInt8 => number!(array, index, UInt8Type),
        DataType::UInt16 => number!(array, index, UInt16Type),
        DataType::UInt32 => number!(array, index, UInt32Type),
        DataType::UInt64 => number!(array, index, UInt64Type),
        DataType::Float16 => array.as_primitive::<Float16Type>().value(index).to_f64().into(),
        DataType::Float32 => number!(array, index, Float32Type),
        DataType::Float64 => number!(array, index, Float64Type),
        DataType::Utf8 => array.as_string::<i32>().value(index).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(index).into(),
        DataType::Utf8View => array.as_string_view().value(index).into(),
        DataType::Binary => bytes(array.as_binary::<i32>().value(index)),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(index)),
        DataType::BinaryView => bytes(array.as_binary_view().value(index)),
        DataType::FixedSizeBinary(_) => bytes(array.as_fixed_size_binary().value(index)),
        DataType::List(_) => list(array.as_list::<i32>().value(index).as_ref()),
        DataType::LargeList(_) => list(array.as_list::<i64>().value(index).as_ref()),
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(index).as_ref()),
        DataType::Struct(_) => object(array.as_struct(), index),
        DataType::Map(..) => entries(&array.as_map().value(index)),
        DataType::Dictionary(..) => {
            let coded = array.as_any_dictionary();
            let at = cell(coded.keys(), index).as_u64().and_then(|at| usize::try_from(at).ok());
            at.map_or(Value::Null, |at| cell(coded.values().as_ref(), at))
        }
        kind => time(kind, array, index),
    }
}

fn time(kind: &DataType, array: &dyn Array, index: usize) -> Value {
    match kind {
        DataType::Date32 => number!(array, index, Date32Type),
        DataType::Date64 => number!(array, index, Date64Type),
        DataType::Time32(TimeUnit::Second) => number!(array, index, Time32SecondType),
        DataType::Time32(TimeUnit::Millisecond) => number!(array, index, Time32MillisecondType),
        DataType::Time64(TimeUnit::Microsecond) => number!(array, index, Time64MicrosecondType),
        DataType::Time64(TimeUnit::Nanosecond) => number!(array, index, Time64NanosecondType),
        DataType::Timestamp(TimeUnit::Second, _) => number!(array, index, TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            number!(array, index, TimestampMillisecondType)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            number!(array, index, TimestampMicrosecondType)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            number!(array, index, TimestampNanosecondType)
        }
        _ => Value::Null,
    }
}

fn bytes(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(|_| json!({"bytes": bytes.len()}), Value::from)
}

fn list(items: &dyn Array) -> Value {
    (0..items.len()).map(|index| cell(items, index)).collect()
}

fn object(array: &StructArray, index: usize) -> Value {
    let columns = array.fields().iter().zip(array.columns());
    let kept = columns.filter(|(field, _)| has_json_value(field.data_type()));
    let fields: Map<String, Value> =
        kept.map(|(field, column)| (field.name().clone(), cell(column.as_ref(), index))).collect();
    Value::Object(fields)
}

/// A map: an object. Keys that are no text are written as JSON.
fn entries(entries: &StructArray) -> Value {
    let [keys, values] = entries.columns() else { return Value::Null };
    let name = |index| match cell(keys.as_ref(), index) {
        Value::String(key) => key,
        other => other.to_string(),
    };
    let fields: Map<String, Value> =
        (0..entries.len()).map(|index| (name(index), cell(values.as_ref(), index))).collect();
    Value::Object(fields)
}
