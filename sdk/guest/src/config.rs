//! Parameters of a stage. They are strings in the pipeline file, and any struct that implements `Deserialize` in the
//! guest.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::StringDeserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, Visitor};

use crate::error::{Error, Result};

/// All parameters as they are in the pipeline file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Config(BTreeMap<String, String>);

impl Config {
    /// Returns the parameter `name`.
    pub fn str(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns the parameter `name`, parsed.
    ///
    /// # Errors
    /// Fails if the parameter is missing or cannot be parsed as `T`.
    pub fn get<T: FromStr<Err: fmt::Display>>(&self, name: &str) -> Result<T> {
        let text = self.str(name).ok_or_else(|| Error::new(format!("the parameter {name:?} is missing")))?;
        text.parse().map_err(|error| Error::new(format!("parameter {name:?}: {text:?}: {error}")))
    }

    /// Returns the parameter `name`, parsed, or `default` if it is missing.
    ///
    /// # Errors
    /// Fails if the parameter cannot be parsed as `T`.
    pub fn get_or<T: FromStr<Err: fmt::Display>>(&self, name: &str, default: T) -> Result<T> {
        if self.0.contains_key(name) { self.get(name) } else { Ok(default) }
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for Config {
    fn from(parameters: [(K, V); N]) -> Self {
        Self(parameters.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

#[doc(hidden)]
pub fn no_parameters(parameters: &[(String, String)]) -> Result<(), String> {
    match parameters.first() {
        None => Ok(()),
        Some((name, _)) => Err(format!("there is no parameter {name:?}: this stage takes none")),
    }
}

#[doc(hidden)]
pub fn parse_parameters<T: DeserializeOwned>(parameters: &[(String, String)]) -> Result<T, String> {
    T::deserialize(Parameters(parameters)).map_err(|error| error.0)
}

struct Parameters<'p>(&'p [(String, String)]);

/// Description of what is wrong with the parameters.
#[derive(Debug)]
struct Mistake(String);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(format!("the parameter {field:?} is missing"))
    }
}

impl<'de> de::Deserializer<'de> for Parameters<'_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_map(Entries { left: self.0.iter(), value: None })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        if let Some((name, _)) = self.0.iter().find(|(name, _)| !fields.contains(&name.as_str())) {
            return Err(Mistake(format!("there is no parameter {name:?}: this stage takes {}", fields.join(", "))));
        }
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct Entries<'p> {
    left: std::slice::Iter<'p, (String, String)>,
    value: Option<&'p (String, String)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        let Some(entry) = self.left.next() else { return Ok(None) };
        self.value = Some(entry);
        let key: StringDeserializer<Mistake> = entry.0.clone().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let (name, text) = self.value.take().ok_or_else(|| Mistake("the value was requested before the key".into()))?;
        seed.deserialize(Text(text)).map_err(|error| Mistake(format!("parameter {name:?}: {text:?}: {error}")))
    }
}

/// The text of a parameter, which is parsed to the requested type.
struct Text<'p>(&'p str);

impl Text<'_> {
    fn parse<T: FromStr<Err: fmt::Display>>(&self) -> Result<T, Mistake> {
        self.0.trim().parse().map_err(|error: T::Err| Mistake(error.to_string()))
    }
}

macro_rules! parsed {
    ($($method:ident $visit:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            visitor.$visit(self.parse()?)
        })*
    };
}

impl<'de> de::Deserializer<'de> for Text<'_> {
    type Error = Mistake;

    parsed! {
        deserialize_bool visit_bool
        deserialize_i8 visit_i8 deserialize_i16 visit_i16 deserialize_i32 visit_i32 deserialize_i64 visit_i64
        deserialize_i128 visit_i128
        deserialize_u8 visit_u8 deserialize_u16 visit_u16 deserialize_u32 visit_u32 deserialize_u64 visit_u64
        deserialize_u128 visit_u128
        deserialize_f32 visit_f32 deserialize_f64 visit_f64
        deserialize_char visit_char
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_str(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_enum(self)
    }

    serde::forward_to_deserialize_any! {
        str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Text<'_> {
    type Error = Mistake;
    type Variant = UnitOnly;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, UnitOnly), Mistake> {
        let name: StringDeserializer<Mistake> = self.0.to_owned().into_deserializer();
        Ok((seed.deserialize(name)?, UnitOnly))
    }
}

/// A parameter can name a variant of an enum, but cannot contain fields.
struct UnitOnly;

impl<'de> de::VariantAccess<'de> for UnitOnly {
    type Error = Mistake;

    fn unit_variant(self) -> Result<(), Mistake> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Mistake> {
        Err(Mistake("a parameter cannot contain a variant with fields".into()))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Mistake> {
        Err(Mistake("a parameter cannot contain a variant with fields".into()))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Mistake> {
        Err(Mistake("a parameter cannot contain a variant with fields".into()))
    }
}
