//! What methods take and give, as JSON Schema.

use std::borrow::Cow;

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema, json_schema};

use super::Builder;
use super::router::Schemas;
use crate::codec::Codec;
use crate::method::{Method, Shape};
use crate::payload::Payload;
use lapwing_proto::MethodShape;

impl Builder {
    /// Lets `describe` tell what a method takes and gives, as JSON Schema: for `lapwing describe`, and for
    /// programs that call methods [in JSON](crate::CallOptions::json) without knowing their types, which derive
    /// [`JsonSchema`]. The route must be there already. One of [`Builder::route_raw`] or
    /// [`Builder::route_inline`] takes the schemas of a method in [`Json`](crate::Json), which so is said to be its codec.
    /// A [`Payload`] is described as bytes: `{"contentMediaType": "application/octet-stream"}`.
    ///
    /// A schema of more than 64 KiB, or without its route, is an error of [`Builder::serve`].
    ///
    /// # Examples
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
    /// use lapwing::schemars::{self, JsonSchema};
    /// use lapwing::{Call, IpcClient, IpcServer, Unary};
    /// use serde::{Deserialize, Serialize};
    ///
    /// /// A text to be measured.
    /// #[derive(Serialize, Deserialize, JsonSchema)]
    /// struct Text {
    ///     /// In UTF-8.
    ///     text: String,
    /// }
    ///
    /// const LENGTH: Unary<Text, u64> = Unary::new(0x0400, "text.length");
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("length.sock");
    /// let server = IpcServer::builder()
    ///     .bind(&path)?
    ///     .route(LENGTH, |_: Call, asked: Text| async move { Ok(asked.text.len() as u64) })
    ///     .schema_of(LENGTH)
    ///     .serve()?;
    ///
    /// let client = IpcClient::connect(&path).await?;
    /// let method = client.describe_method(LENGTH.kind()).await?;
    /// assert_eq!(method.codec, "postcard");
    /// assert!(method.request_schema.is_some_and(|schema| schema.contains("In UTF-8.")));
    /// # server.shutdown().await;
    /// # Ok(()) })
    /// # }
    /// ```
    #[must_use]
    pub fn schema_of<S, Q, R, C>(mut self, method: Method<S, Q, R, C>) -> Builder
    where
        S: Shape,
        Q: JsonSchema,
        R: JsonSchema,
        C: Codec,
    {
        self.router = self.router.and_then(|mut router| {
            let settings = SchemaSettings::draft2020_12;
            let schemas = Schemas {
                request: schema::<Q>(settings().for_deserialize()),
                // A one-way message has no reply.
                reply: match S::SHAPE {
                    MethodShape::OneWay => None,
                    _ => schema::<R>(settings().for_serialize()),
                },
            };
            router.add_schemas(method.kind(), method.name(), S::SHAPE, C::NAME, schemas)?;
            Ok(router)
        });
        self
    }
}

/// Bytes as they are, as OpenAPI says it: no type, for they are no JSON.
impl JsonSchema for Payload {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "contentMediaType": "application/octet-stream" })
    }
}

fn schema<T: JsonSchema>(settings: SchemaSettings) -> Option<String> {
    let schema = settings.into_generator().into_root_schema_for::<T>();
    Some(schema.as_value().to_string())
}
