// The official `openai` package for Node: every API it has, through its plain calls and its helpers.

import OpenAI, { AzureOpenAI } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { drive, TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT } from "../driver.mjs";

const MODEL = "gpt-4o-mini";
const Place = z.object({ name: z.string(), floors: z.number().int(), opens_at: z.array(z.string()) });
const CHAT_TOOLS = [
  { type: "function", function: { name: TOOL_NAME, description: TOOL_DESCRIPTION, parameters: TOOL, strict: true } },
];
const RESPONSE_TOOLS = [
  { type: "function", name: TOOL_NAME, description: TOOL_DESCRIPTION, parameters: TOOL, strict: true },
];

const user = (question) => [
  { role: "system", content: "Answer briefly." },
  { role: "user", content: question },
];

const connect = (base, apiKey, defaultHeaders) =>
  new OpenAI({ baseURL: `${base}/v1`, apiKey, defaultHeaders, maxRetries: 0 });

function chatSeen(answer, response, more = {}) {
  const { message } = answer.choices[0];
  const call = message.tool_calls?.[0];
  return {
    text: message.content ?? undefined,
    tool: call?.function.name,
    arguments: call && JSON.parse(call.function.arguments),
    thought: message.reasoning_content,
    object: message.parsed ?? undefined,
    usage: answer.usage?.total_tokens,
    cache: response?.headers.get("cache-status"),
    ...more,
  };
}

function chatOf(client) {
  const completions = client.chat.completions;
  const ask = async (question, more = {}) => {
    const { data, response } = await completions
      .create({ model: MODEL, messages: user(question), ...more })
      .withResponse();
    return chatSeen(data, response);
  };
  const follow = async (question, more = {}) => {
    const stream = completions.stream({
      model: MODEL,
      messages: user(question),
      stream_options: { include_usage: true },
      ...more,
    });
    let pieces = 0;
    for await (const chunk of stream) {
      const delta = chunk.choices[0]?.delta;
      if (delta?.content || delta?.tool_calls) pieces += 1;
    }
    return chatSeen(await stream.finalChatCompletion(), null, { pieces });
  };
  return {
    text: ask,
    stream: follow,
    tool: (question) => ask(question, { tools: CHAT_TOOLS }),
    tool_stream: (question) => follow(question, { tools: CHAT_TOOLS }),
    loop: async (question) => {
      const runner = completions.runTools({
        model: MODEL,
        messages: user(question),
        tools: [
          {
            type: "function",
            function: {
              ...CHAT_TOOLS[0].function,
              function: () => TOOL_RESULT,
              parse: JSON.parse,
            },
          },
        ],
      });
      return { text: await runner.finalContent() };
    },
    object: async (question) =>
      chatSeen(
        await completions.parse({
          model: MODEL,
          messages: user(question),
          response_format: zodResponseFormat(Place, "place"),
        }),
      ),
    object_stream: (question) => follow(question, { response_format: zodResponseFormat(Place, "place") }),
  };
}

function chat(base, key, headers) {
  const client = connect(base, key, headers);
  const completions = client.chat.completions;
  return {
    ...chatOf(client),
    thought: async (question) => {
      const { data, response } = await completions
        .create({ model: "deepseek-reasoner", messages: user(question) })
        .withResponse();
      return chatSeen(data, response);
    },
    thought_stream: async (question) => {
      const { data, response } = await completions
        .create({ model: "deepseek-reasoner", messages: user(question), stream: true })
        .withResponse();
      const seen = { text: "", thought: "", pieces: 0, cache: response.headers.get("cache-status") };
      for await (const chunk of data) {
        const delta = chunk.choices[0]?.delta ?? {};
        seen.text += delta.content ?? "";
        seen.thought += delta.reasoning_content ?? "";
        seen.pieces += delta.content ? 1 : 0;
      }
      return seen;
    },
    other: async () => ({ text: (await client.models.list()).data.map((model) => model.id).join() }),
  };
}

const azure = (base, apiKey, defaultHeaders) =>
  chatOf(new AzureOpenAI({ endpoint: base, apiKey, apiVersion: "2024-10-21", defaultHeaders, maxRetries: 0 }));

function responses(base, key, headers) {
  const client = connect(base, key, headers);
  const settings = { model: MODEL, instructions: "Answer briefly.", store: false };
  const seen = (answer, response, more = {}) => {
    const call = answer.output.find((item) => item.type === "function_call");
    const thoughts = answer.output.filter((item) => item.type === "reasoning").flatMap((item) => item.summary);
    return {
      text: answer.output_text || undefined,
      tool: call?.name,
      arguments: call && JSON.parse(call.arguments),
      thought: thoughts.map((part) => part.text).join("") || undefined,
      object: answer.output_parsed ?? undefined,
      usage: answer.usage.total_tokens,
      cache: response?.headers.get("cache-status"),
      ...more,
    };
  };
  const ask = async (input, more = {}) => {
    const { data, response } = await client.responses.create({ ...settings, input, ...more }).withResponse();
    return seen(data, response);
  };
  const follow = async (input, more = {}) => {
    const stream = client.responses.stream({ ...settings, input, ...more });
    let pieces = 0;
    for await (const event of stream) if (event.type.endsWith(".delta")) pieces += 1;
    return seen(await stream.finalResponse(), null, { pieces });
  };
  return {
    text: ask,
    stream: follow,
    tool: (question) => ask(question, { tools: RESPONSE_TOOLS }),
    tool_stream: (question) => follow(question, { tools: RESPONSE_TOOLS }),
    loop: async (question) => {
      const input = [{ role: "user", content: question }];
      const first = await client.responses.create({ ...settings, input, tools: RESPONSE_TOOLS });
      const { call_id } = first.output.at(-1);
      return ask([...input, ...first.output, { type: "function_call_output", call_id, output: TOOL_RESULT }], {
        tools: RESPONSE_TOOLS,
      });
    },
    // The vendor keeps the conversation, and is sent what is new.
    state: async (question) => {
      const { id } = await client.responses.create({ ...settings, store: true, input: question });
      return ask(`${question} Say more.`, { store: true, previous_response_id: id });
    },
    object: async (input) =>
      seen(await client.responses.parse({ ...settings, input, text: { format: zodTextFormat(Place, "place") } })),
    object_stream: (question) => follow(question, { text: { format: zodTextFormat(Place, "place") } }),
    thought: (question) => ask(question, { reasoning: { effort: "low", summary: "auto" } }),
    thought_stream: (question) => follow(question, { reasoning: { effort: "low", summary: "auto" } }),
  };
}

function completions(base, key, headers) {
  const client = connect(base, key, headers);
  const settings = { model: "gpt-3.5-turbo-instruct", max_tokens: 200 };
  return {
    text: async (prompt) => {
      const { data, response } = await client.completions.create({ ...settings, prompt }).withResponse();
      return { text: data.choices[0].text, usage: data.usage.total_tokens, cache: response.headers.get("cache-status") };
    },
    stream: async (prompt) => {
      const { data, response } = await client.completions
        .create({ ...settings, prompt, stream: true })
        .withResponse();
      const seen = { text: "", pieces: 0, cache: response.headers.get("cache-status") };
      for await (const chunk of data) {
        seen.text += chunk.choices[0].text;
        seen.pieces += chunk.choices[0].text ? 1 : 0;
      }
      return seen;
    },
  };
}

function embeddings(base, key, headers) {
  const client = connect(base, key, headers);
  return {
    embed: async (input) => {
      const asked = client.embeddings.create({ model: "text-embedding-3-small", input });
      const { data, response } = await asked.withResponse();
      return { vectors: data.data.map((one) => one.embedding), cache: response.headers.get("cache-status") };
    },
  };
}

await drive(import.meta.url, ["openai"], { chat, responses, completions, azure }, { embeddings });
