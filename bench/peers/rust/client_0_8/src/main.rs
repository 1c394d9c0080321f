//! The client crate 0.8.0 against a daemon whose sockets have their default paths below XDG_RUNTIME_DIR.
//! Prints a line for each check. The exit status is 1 if one fails.

use inferd_client::*;
use inferd_proto::v2::{ResponseFormat, ToolChoice};
use tokio_stream::StreamExt;

type Checked = Result<String, Box<dyn std::error::Error>>;

fn request(text: &str) -> RequestV2 {
    RequestV2 {
        id: "r".into(),
        messages: vec![MessageV2 {
            role: RoleV2::User,
            content: vec![ContentBlock::Text { text: text.into() }],
        }],
        ..Default::default()
    }
}

fn tool() -> Tool {
    Tool {
        name: "weather".into(),
        description: "The weather now.".into(),
        input_schema: serde_json::json!({"type": "object", "properties": {"city": {"type": "string"}}}),
    }
}

/// The answer: texts in pieces, calls, and the frame that ends it.
async fn ask(
    client: &mut ClientV2,
    request: RequestV2,
) -> Result<(Vec<String>, Vec<String>, ResponseV2), Box<dyn std::error::Error>> {
    let (mut texts, mut calls) = (vec![], vec![]);
    let mut stream = client.generate(request).await?;
    while let Some(frame) = stream.next().await {
        match frame? {
            ResponseV2::Frame { block: ResponseBlock::Text { delta }, .. } => texts.push(delta),
            ResponseV2::Frame { block: ResponseBlock::Thinking { .. }, .. } => {}
            ResponseV2::Frame { block: ResponseBlock::ToolUse { name, .. }, .. } => calls.push(name),
            end => return Ok((texts, calls, end)),
        }
    }
    Err("no end".into())
}

async fn connect() -> Result<ClientV2, Box<dyn std::error::Error>> {
    Ok(ClientV2::dial_uds(&default_v2_addr()).await?)
}

async fn generate() -> Checked {
    let mut client = connect().await?;
    for _ in 0..2 {
        let (texts, _, end) = ask(&mut client, request("Say hello.")).await?;
        if texts.len() < 2 || !matches!(end, ResponseV2::Done { .. }) {
            return Err(format!("{texts:?} {end:?}").into());
        }
    }
    Ok("two requests on one connection, in pieces".into())
}

async fn long_prompt() -> Checked {
    let (_, _, end) = ask(&mut connect().await?, request(&"word ".repeat(100_000))).await?;
    match end {
        ResponseV2::Done { .. } => Ok("a prompt of 500,000 bytes".into()),
        end => Err(format!("{end:?}").into()),
    }
}

async fn tools() -> Checked {
    let mut asked = request("Is it warm in Oslo?");
    asked.tools = vec![tool()];
    asked.tool_choice = Some(ToolChoice::Required);
    let (_, calls, end) = ask(&mut connect().await?, asked).await?;
    match end {
        ResponseV2::Done { stop_reason: StopReasonV2::ToolUse, .. } if calls == ["weather"] => {
            Ok("a required call".into())
        }
        end => Err(format!("{calls:?} {end:?}").into()),
    }
}

async fn attachments() -> Checked {
    let mut client = connect().await?;
    for side in [1u32, 1000] {
        let mut asked = request("What is this?");
        asked.messages[0].content.push(ContentBlock::Image { attachment_id: "p".into() });
        let bytes = vec![7; (3 * side * side) as usize];
        asked.attachments = vec![Attachment::Image { id: "p".into(), width: side, height: side, bytes }];
        let (_, _, end) = ask(&mut client, asked).await?;
        if !matches!(end, ResponseV2::Done { .. }) {
            return Err(format!("{end:?}").into());
        }
    }
    Ok("pictures of 3 bytes and of 3 MB".into())
}

async fn refusals() -> Checked {
    let mut client = connect().await?;
    let mut asked = request("hi");
    asked.tool_choice = Some(ToolChoice::Auto);
    let mut both = request("hi");
    both.tools = vec![tool()];
    both.tool_choice = Some(ToolChoice::Required);
    both.response_format = Some(ResponseFormat::JsonSchema { schema: serde_json::json!({"type": "object"}) });
    for refused in [RequestV2::default(), asked, both] {
        let (_, _, end) = ask(&mut client, refused).await?;
        if !matches!(end, ResponseV2::Error { code: ErrorCodeV2::InvalidRequest, .. }) {
            return Err(format!("{end:?}").into());
        }
    }
    let (_, _, end) = ask(&mut client, request("hi")).await?;
    match end {
        ResponseV2::Done { .. } => Ok("error frames, and the connection goes on".into()),
        end => Err(format!("{end:?}").into()),
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

async fn rerank() -> Checked {
    let mut client = RerankClient::dial_uds(&default_rerank_addr()).await?;
    let documents = vec!["a large dog".into(), "a bay".into()];
    let asked = RerankRequest { id: "k".into(), query: "a fjord".into(), documents, top_n: Some(1) };
    match client.rerank(asked).await? {
        RerankResponse::Rerank { results, .. } if results.len() == 1 => Ok("the best of 2".into()),
        other => Err(format!("{other:?}").into()),
    }
}

async fn admin() -> Checked {
    let mut client = AdminClient::dial_admin_uds(&default_admin_addr()).await?;
    loop {
        let event = client.recv().await?;
        if event.status == "capabilities" && event.wire_version != Some(1) {
            return Err(format!("wire_version {:?}", event.wire_version).into());
        }
        if event.status == "ready" {
            return Ok("capabilities with wire_version 1, ready".into());
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut failed = false;
    let checks = [
        ("generate", generate().await),
        ("long prompt", long_prompt().await),
        ("tools", tools().await),
        ("attachments", attachments().await),
        ("refusals", refusals().await),
        ("embed", embed().await),
        ("rerank", rerank().await),
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
