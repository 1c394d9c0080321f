//! The client crate 0.2.1 against a daemon whose sockets have their default paths below XDG_RUNTIME_DIR.
//! Prints a line for each check. The exit status is 1 if one fails.

use inferd_client::*;
use tokio_stream::StreamExt;

type Checked = Result<String, Box<dyn std::error::Error>>;

fn v1_socket() -> std::path::PathBuf {
    default_v2_addr().with_file_name("infer.sock")
}

fn v1_request(text: &str) -> Request {
    serde_json::from_value(serde_json::json!({"id": "r", "messages": [{"role": "user", "content": text}]}))
        .unwrap()
}

async fn v1() -> Checked {
    let mut client = Client::dial_uds(&v1_socket()).await?;
    for text in ["Say hello.", ""] {
        let mut stream = client.generate(v1_request(text)).await?;
        let mut tokens = 0;
        loop {
            match stream.next().await.ok_or("no end")?? {
                Response::Token { .. } => tokens += 1,
                Response::Done { .. } if tokens > 1 => break,
                other => return Err(format!("{other:?}").into()),
            }
        }
    }
    Ok("two requests on one connection, in tokens".into())
}

async fn v1_refusal() -> Checked {
    let mut client = Client::dial_uds(&v1_socket()).await?;
    let mut empty = v1_request("");
    empty.messages.clear();
    let frame = client.generate(empty).await?.next().await.ok_or("no frame")??;
    match frame {
        Response::Error { code: ErrorCode::InvalidRequest, .. } => Ok("an error frame".into()),
        other => Err(format!("{other:?}").into()),
    }
}

async fn v2() -> Checked {
    let mut client = ClientV2::dial_uds(&default_v2_addr()).await?;
    let mut called = false;
    let asked = RequestV2 {
        id: "r".into(),
        messages: vec![MessageV2 {
            role: RoleV2::User,
            content: vec![
                ContentBlock::Text { text: "What is this?".into() },
                ContentBlock::Image { attachment_id: "p".into() },
            ],
        }],
        attachments: vec![Attachment::Image { id: "p".into(), width: 1, height: 1, bytes: "/wAA".into() }],
        tools: vec![Tool {
            name: "weather".into(),
            description: "The weather now.".into(),
            input_schema: serde_json::json!({"type": "object"}),
        }],
        ..Default::default()
    };
    let mut stream = client.generate(asked).await?;
    loop {
        match stream.next().await.ok_or("no end")?? {
            ResponseV2::Frame { block: ResponseBlock::ToolUse { .. }, .. } => called = true,
            ResponseV2::Frame { .. } => {}
            ResponseV2::Done { stop_reason: StopReasonV2::ToolUse, .. } if called => {
                return Ok("a picture in base64, and a call".into());
            }
            other => return Err(format!("{other:?}").into()),
        }
    }
}

async fn embed() -> Checked {
    let mut client = EmbedClient::dial_uds(&default_embed_addr()).await?;
    let input = vec!["one".into(), "two".into()];
    match client.embed(EmbedRequest { id: "e".into(), input, dimensions: None, task: None }).await? {
        EmbedResponse::Embeddings { embeddings, .. } => Ok(format!("{} vectors", embeddings.len())),
        error => Err(format!("{error:?}").into()),
    }
}

async fn admin() -> Checked {
    let mut client = AdminClient::dial_admin_uds(&default_admin_addr()).await?;
    client.wait_ready().await?;
    Ok("ready".into())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut failed = false;
    let checks = [
        ("v1", v1().await),
        ("v1 refusal", v1_refusal().await),
        ("v2", v2().await),
        ("embed", embed().await),
        ("admin", admin().await),
    ];
    for (name, checked) in checks {
        match checked {
            Ok(what) => println!("ok      {name}: {what}"),
            Err(error) => {
                failed = true;
                println!("FAILED  {name}: {error}");
            }
        }
    }
    std::process::exit(failed.into());
}
