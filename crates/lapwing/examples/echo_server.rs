//! The smallest server: it answers every request of one method with the request's own bytes, until Ctrl-C.
//!
//! ```sh
//! cargo run --release -p lapwing --example echo_server -- /tmp/echo.sock
//! lapwing call --raw 0x0400 hello --socket /tmp/echo.sock
//! ```

use lapwing::IpcServer;

/// Any number from `0x0400` on is an application's own.
const ECHO: u16 = 0x0400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("say where to listen: echo_server PATH")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let _server = IpcServer::builder()
            .route_inline(ECHO, "echo", |_caller, request, reply| {
                reply.extend(request);
                Ok(())
            })
            .bind(&path)?
            .serve()?;
        // Until it is killed: the memory goes with it, and the next server takes the socket's path over.
        std::future::pending().await
    })
}
