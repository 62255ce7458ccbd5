// The official `@anthropic-ai/sdk` for Node: plain calls, the stream helper, parsed outputs and the tool runner.

import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { drive, TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT } from "../driver.mjs";

const Place = z.object({ name: z.string(), floors: z.number().int(), opens_at: z.array(z.string()) });
const TOOLS = [{ name: TOOL_NAME, description: TOOL_DESCRIPTION, input_schema: TOOL }];
const THINKING = { type: "enabled", budget_tokens: 1024 };

const asked = (question) => ({
  model: "claude-sonnet-4-5",
  max_tokens: 4000,
  system: [{ type: "text", text: "Answer briefly.", cache_control: { type: "ephemeral" } }],
  messages: [{ role: "user", content: [{ type: "text", text: question }] }],
});

function seen(message, response, more = {}) {
  const block = (type) => message.content.find((one) => one.type === type);
  const text = message.content.filter((one) => one.type === "text").map((one) => one.text);
  const thinking = block("thinking");
  const { input_tokens, output_tokens, cache_read_input_tokens } = message.usage;
  return {
    text: text.join("") || undefined,
    tool: block("tool_use")?.name,
    arguments: block("tool_use")?.input,
    thought: thinking && `${thinking.thinking} [${thinking.signature}]`,
    object: message.parsed_output ?? undefined,
    usage: [input_tokens, output_tokens, cache_read_input_tokens],
    cache: response?.headers.get("cache-status"),
    ...more,
  };
}

function messages(baseURL, apiKey, defaultHeaders) {
  const client = new Anthropic({ baseURL, apiKey, defaultHeaders, maxRetries: 0 });
  const ask = async (question, more = {}) => {
    const { data, response } = await client.messages.create({ ...asked(question), ...more }).withResponse();
    return seen(data, response);
  };
  const follow = async (question, more = {}) => {
    const stream = client.messages.stream({ ...asked(question), ...more });
    let pieces = 0;
    for await (const event of stream) if (event.type === "content_block_delta") pieces += 1;
    return seen(await stream.finalMessage(), null, { pieces });
  };
  const runTools = async (question, more = {}) => {
    const run = () => TOOL_RESULT;
    const tools = [betaTool({ name: TOOL_NAME, description: TOOL_DESCRIPTION, inputSchema: TOOL, run })];
    return seen(await client.beta.messages.toolRunner({ ...asked(question), tools, ...more }));
  };
  return {
    text: ask,
    stream: follow,
    tool: (question) => ask(question, { tools: TOOLS }),
    tool_stream: (question) => follow(question, { tools: TOOLS }),
    loop: (question) => runTools(question, { thread: false }),
    // As the runner goes by default: the vendor keeps the conversation, and is sent what is new.
    state: (question) => runTools(question),
    object: async (question) => {
      const output_config = { format: zodOutputFormat(Place) };
      return seen(await client.messages.parse({ ...asked(question), output_config }));
    },
    thought: (question) => ask(question, { thinking: THINKING }),
    thought_stream: (question) => follow(question, { thinking: THINKING }),
    other: async (question) => {
      const { model, messages } = asked(question);
      return { text: `${(await client.messages.countTokens({ model, messages })).input_tokens} tokens` };
    },
  };
}

await drive(import.meta.url, ["@anthropic-ai/sdk"], { messages });
