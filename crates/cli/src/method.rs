//! Which method of a server is meant, and what the server says of it.

use anyhow::bail;
use lapwing::blocking::IpcClient;
use lapwing::methods::{Method, MethodDetails, Shape};
use lapwing::{CallError, Code};
use serde_json::Value;

use crate::exit::InputError;

/// A method of a server.
pub(crate) struct Found {
    pub(crate) method: Method,
    /// What only DescribeMethod says, where the server has that.
    pub(crate) details: Option<MethodDetails>,
    /// Whether the server is too old to have it.
    pub(crate) older_server: bool,
}

impl Found {
    /// Its codec's name, where the server says it.
    pub(crate) fn codec(&self) -> Option<&str> {
        self.details.as_ref().map(|details| details.codec.as_str())
    }

    /// JSON Schema of its request, or of each item of it, where the server says it.
    pub(crate) fn request_schema(&self) -> Option<&str> {
        self.details.as_ref()?.request_schema.as_deref()
    }

    /// Whether requests are bytes that are no JSON, as the server says.
    pub(crate) fn takes_bytes(&self) -> bool {
        match self.request_schema() {
            Some(schema) => is_of_bytes(schema),
            None => matches!(self.codec(), Some("raw" | "raw/json")),
        }
    }

    /// Whether replies are.
    pub(crate) fn gives_bytes(&self) -> bool {
        match self.details.as_ref().and_then(|details| details.reply_schema.as_deref()) {
            Some(schema) => is_of_bytes(schema),
            None => matches!(self.codec(), Some("raw" | "json/raw")),
        }
    }

    /// A method of a server that is known to say no more.
    pub(crate) fn undescribed(method: Method) -> Found {
        Found { method, details: None, older_server: true }
    }
}

/// Whether a schema says bytes: a type would be one of JSON.
fn is_of_bytes(schema: &str) -> bool {
    let Ok(schema) = serde_json::from_str::<Value>(schema) else { return false };
    schema.get("type").is_none()
        && schema.get("contentMediaType").is_some_and(|media| media == "application/octet-stream")
}

/// What a server says of a method that is asked for.
pub(crate) enum Answer {
    Found(Found),
    /// It does not list its methods, and may have one of this number.
    Untold,
}

impl Answer {
    pub(crate) fn found(&self) -> Option<&Found> {
        match self {
            Answer::Found(found) => Some(found),
            Answer::Untold => None,
        }
    }
}

/// The method that is called so, by name or number.
pub(crate) fn find(client: &IpcClient, wanted: &str) -> anyhow::Result<Answer> {
    let kind = match number(wanted) {
        Some(Ok(kind)) => kind,
        Some(Err(error)) => return Err(error.into()),
        None => return Ok(Answer::Found(detailed(client, by_name(client, wanted)?)?)),
    };
    if kind < 0x0100 {
        return Err(CallError::BadKind(kind).into());
    }
    let listed = match client.describe() {
        Ok(methods) => methods.into_iter().find(|method| method.kind == kind),
        Err(CallError::Status(_)) => return Ok(Answer::Untold),
        Err(error) => return Err(error.into()),
    };
    match listed {
        Some(method) => Ok(Answer::Found(detailed(client, method)?)),
        None => {
            let message = format!(
                "the server has no method {wanted}; `lapwing describe` lists those that it has"
            );
            Err(InputError(message).into())
        }
    }
}

/// A method with what the server says of it.
pub(crate) fn detailed(client: &IpcClient, method: Method) -> anyhow::Result<Found> {
    let details = match client.describe_method(method.kind) {
        Ok(details) => Some(details),
        Err(CallError::Status(status)) => match status.code {
            Code::Unimplemented => return Ok(Found::undescribed(method)),
            // Gone since it was listed, or the answer is longer than the connection takes.
            Code::NotFound | Code::ResourceExhausted => None,
            _ => return Err(CallError::Status(status).into()),
        },
        Err(error) => return Err(error.into()),
    };
    Ok(Found { method, details, older_server: false })
}

fn by_name(client: &IpcClient, name: &str) -> anyhow::Result<Method> {
    let mut methods = client.describe()?;
    let Some(at) = methods.iter().position(|method| method.name == name) else {
        let mut names: Vec<_> = methods.into_iter().map(|method| method.name).collect();
        names.sort_unstable();
        names.truncate(20);
        let known = match names.is_empty() {
            true => "it has none".to_owned(),
            false => format!("it has {}", names.join(", ")),
        };
        bail!(InputError(format!("the server has no method '{name}'; {known}")));
    };
    Ok(methods.swap_remove(at))
}

/// The method as a number, if that is how it was given.
pub(crate) fn number(method: &str) -> Option<Result<u16, InputError>> {
    let (digits, radix) = match method.strip_prefix("0x").or_else(|| method.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (method, 10),
    };
    // A sign, which the parser would take, makes it a name.
    let plain = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    plain.then(|| {
        u16::from_str_radix(digits, radix).map_err(|_| {
            InputError(format!("{method} is no method's number: a number is at most 0xFFFF"))
        })
    })
}

/// A shape as it is printed.
pub(crate) fn shape_name(shape: Shape) -> &'static str {
    match shape {
        Shape::Unary => "unary",
        Shape::OneWay => "one-way",
        Shape::ServerStream => "server-stream",
        Shape::ClientStream => "client-stream",
        Shape::Duplex => "duplex",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_numbers_in_hexadecimal_or_decimal_and_names_otherwise() {
        let number = |text| number(text).map(Result::ok);
        assert_eq!(number("0x0310"), Some(Some(0x310)));
        assert_eq!(number("0XFFFF"), Some(Some(0xFFFF)));
        assert_eq!(number("784"), Some(Some(784)));
        for too_large in ["0x10000", "65536", "99999999999999999999999"] {
            assert_eq!(number(too_large), Some(None), "{too_large}");
        }
        for name in ["fs.search", "0x", "-1", "", "+784", "0x+1f"] {
            assert_eq!(number(name), None, "{name}");
        }
    }
}
