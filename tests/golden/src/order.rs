//! The order in which a file's objects list their keys, which decides the order of some results and
//! which `serde_json::Value` does not keep.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// The keys of a JSON value's objects, in the order of the text.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// Entries of an object, in order; those of a list have no keys.
    entries: Vec<(Option<String>, Order)>,
}

impl Order {
    /// Keys of the object.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|(key, _)| key.as_deref())
    }

    /// What a key holds; nothing if there is no such key.
    #[must_use]
    pub fn of(&self, key: &str) -> Self {
        let entry = self.entries.iter().find(|(own, _)| own.as_deref() == Some(key));
        entry.map(|(_, order)| order.clone()).unwrap_or_default()
    }

    /// An entry of the list; nothing past its end.
    #[must_use]
    pub fn at(&self, index: usize) -> Self {
        self.entries.get(index).map(|(_, order)| order.clone()).unwrap_or_default()
    }
}

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Order;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Order, A::Error> {
                let mut entries: Vec<(Option<String>, Order)> = Vec::new();
                while let Some((key, order)) = map.next_entry::<String, Order>()? {
                    // A key that comes again keeps its place.
                    match entries.iter_mut().find(|(own, _)| own.as_deref() == Some(key.as_str())) {
                        Some((_, there)) => *there = order,
                        None => entries.push((Some(key), order)),
                    }
                }
                Ok(Order { entries })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Order, A::Error> {
                let mut entries = Vec::new();
                while let Some(order) = list.next_element()? {
                    entries.push((None, order));
                }
                Ok(Order { entries })
            }
            fn visit_unit<E>(self) -> Result<Order, E> {
                Ok(Order::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Order, E> {
                Ok(Order::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Order, E> {
                Ok(Order::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Order, E> {
                Ok(Order::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Order, E> {
                Ok(Order::default())
            }
            fn visit_str<E>(self, _: &str) -> Result<Order, E> {
                Ok(Order::default())
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_the_order_of_the_text() {
        let text = r#"{"b": [1, {"z": null, "a": 1.5, "z": "x"}], "a": true, "c": -1}"#;
        let order: Order = serde_json::from_str(text).unwrap();
        assert_eq!(order.keys().collect::<Vec<_>>(), ["b", "a", "c"]);
        assert_eq!(order.of("b").at(1).keys().collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(order.of("b").keys().count(), 0);
        assert_eq!(order.of("d").at(3).keys().count(), 0);
    }
}
