// One answer: asked through the same address as every client, heard piece by piece, picked up again when the line breaks.
import { events, Refused, remove } from "./net.js";
import { run, TOOLS } from "./tools.js";

const MOST_ROUNDS = 5; // of tool calls in one answer
const TRIES = 4; // to pick a broken stream up

// `hear(answer)` is called after every piece with what the answer is so far.
export async function answer({ model, messages, thinking, tools, signal }, hear) {
  const whole = { content: "", thinking: "", tool_calls: [], finish: "", facts: { began: performance.now() }, state: "waiting" };
  const turns = [...messages];
  for (let round = 0; round < MOST_ROUNDS; round += 1) {
    const calls = await one({ model, turns, thinking, tools, signal }, whole, hear);
    if (!calls.length || !tools) break;
    turns.push({ role: "assistant", content: "", tool_calls: calls.map(wire) });
    for (const call of calls) {
      call.result = run(call.name, call.arguments);
      turns.push({ role: "tool", tool_call_id: call.id, content: call.result });
    }
    hear(whole);
  }
  whole.state = "done";
  whole.facts.total_s = (performance.now() - whole.facts.began) / 1000;
  return whole;
}

const wire = (call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } });

// The turns of a branch as the server takes them; calls that were answered come back with their results.
export function turnsOf(path) {
  return path.flatMap((message) => {
    if (message.role === "user") return [{ role: "user", content: message.content }];
    const said = message.content ? [{ role: "assistant", content: message.content }] : [];
    const answered = message.tool_calls.filter((call) => call.result !== undefined);
    if (!answered.length) return said;
    const results = answered.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result }));
    return [{ role: "assistant", content: "", tool_calls: answered.map(wire) }, ...results, ...said];
  });
}

async function one({ model, turns, thinking, tools, signal }, whole, hear) {
  const id = crypto.randomUUID();
  const body = { model, messages: turns, stream: true, stream_options: { include_usage: true } };
  if (thinking !== undefined) body.chat_template_kwargs = { enable_thinking: thinking };
  if (tools) body.tools = TOOLS;
  const calls = [];
  const place = { bytes: 0 };
  let ended = false;
  const piece = (data) => {
    if (data === "[DONE]") ended = true;
    else if (take(JSON.parse(data), whole, calls)) hear(whole);
  };
  const named = { "x-conversation-id": id };
  // The server goes on with a kept stream when its reader leaves, so a stop is said aloud.
  const stopped = () => remove(`/v1/stream?conv_id=${id}`).catch(() => {});
  signal.addEventListener("abort", stopped);
  for (let attempt = 0; ; attempt += 1) {
    try {
      if (place.bytes === 0) await events("POST", "/v1/chat/completions", body, piece, { signal, place, more: named });
      else await events("GET", `/v1/stream?conv_id=${id}&from=${place.bytes}`, undefined, piece, { signal, place });
      if (ended) break;
      throw new TypeError("the stream ended before its end");
    } catch (error) {
      const lost = error instanceof TypeError && place.bytes > 0 && attempt < TRIES && !signal.aborted;
      if (!lost) throw error;
      whole.state = "lost";
      hear(whole);
      await new Promise((done) => setTimeout(done, 300 * 2 ** attempt));
    }
  }
  signal.removeEventListener("abort", stopped);
  whole.tool_calls.push(...calls.filter(Boolean));
  return calls.filter(Boolean);
}

// One event of the stream; whether it changed anything that is shown.
function take(data, whole, calls) {
  if (data.error) throw new Refused(data.error.status ?? 500, data.error);
  const now = performance.now();
  if (data.usage) usage(data.usage, whole.facts);
  const choice = data.choices?.[0];
  if (!choice) return Boolean(data.usage);
  const { content, reasoning_content: thought, reasoning, tool_calls: given } = choice.delta ?? {};
  if (thought ?? reasoning) {
    whole.facts.thought_from ??= now;
    whole.thinking += thought ?? reasoning;
    whole.facts.thinking_s = (now - whole.facts.thought_from) / 1000;
    whole.state = "thinking";
  }
  if (content) {
    whole.content += content;
    whole.state = "writing";
  }
  if (content || thought || reasoning) whole.facts.first_s ??= (now - whole.facts.began) / 1000;
  for (const part of given ?? []) {
    const call = (calls[part.index ?? calls.length] ??= { id: "", name: "", arguments: "" });
    call.id ||= part.id ?? "";
    call.name ||= part.function?.name ?? "";
    call.arguments += part.function?.arguments ?? "";
  }
  if (choice.finish_reason) whole.finish = choice.finish_reason;
  return Boolean(content || thought || reasoning || given?.length || choice.finish_reason);
}

function usage(found, facts) {
  facts.prompt_tokens = found.prompt_tokens;
  facts.answer_tokens = (facts.answer_tokens ?? 0) + (found.completion_tokens ?? 0);
  const thought = found.completion_tokens_details?.reasoning_tokens;
  if (thought) facts.thinking_tokens = (facts.thinking_tokens ?? 0) + thought;
}

// What is kept of an answer's facts: numbers that mean something later.
export function kept(whole, more = {}) {
  const { prompt_tokens, answer_tokens, thinking_tokens, thinking_s, first_s } = whole.facts;
  const total_s = (performance.now() - whole.facts.began) / 1000;
  const found = { prompt_tokens, answer_tokens, thinking_tokens, thinking_s, first_s, total_s, finish: whole.finish || undefined, ...more };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}
