// Drives one Node client through the list of features, and prints a line of JSON for each: the twin of driver.py.
//
// A client's program gives adapters: functions of (base URL without /v1, key, headers) that return an object whose
// methods are the verbs of features.json. Nothing is judged here: that is done in tests/e2e/judge.py.

import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { readFileSync } from "node:fs";

export const TOOL_NAME = "look_up_weather";
export const TOOL_DESCRIPTION = "Look up the weather of a place.";
export const TOOL_RESULT = "Dry, and 18 degrees.";
export const TOOL = {
  type: "object",
  properties: { place: { type: "string", description: "where to look" }, days: { type: "integer" } },
  required: ["place", "days"],
  additionalProperties: false,
};

/** Run everything. The command line names the APIs to run; none: all. */
export async function drive(from, packages, talk, embeddings = {}) {
  const given = JSON.parse(process.env.SEMCACHE_E2E);
  say({ versions: Object.fromEntries(packages.map((name) => [name, versionOf(from, name)])) });
  const wanted = process.argv.slice(2);
  for (const [section, adapters] of Object.entries({ talk, embeddings })) {
    for (const [api, adapter] of Object.entries(adapters)) {
      if (wanted.length && !wanted.includes(api)) continue;
      for (const [feature, plan] of Object.entries(given.features[section])) {
        const verbs = adapter("http://127.0.0.1:1", "none", {});
        if (!plan.steps.every((step) => step.do in verbs)) continue;
        const key = `sk-${api}-`;
        say({ section, api, mode: "", feature, key, saw: await play(given, adapter, key, plan) });
      }
    }
  }
}

async function play(given, adapter, key, plan) {
  const saw = [];
  for (const step of plan.steps) {
    const isDirect = step.via === "upstream";
    const client = adapter(isDirect ? given.upstream : given.proxy, isDirect ? `${key}-direct` : key, step.headers ?? {});
    const asked = step.texts ? step.texts.map((number) => plan.texts[number]) : plan.question;
    try {
      saw.push(await client[step.do](asked));
    } catch (error) {
      saw.push({ error: describe(error) });
    }
  }
  return saw;
}

function describe(error) {
  const status = error.status ?? error.statusCode ?? null;
  return { type: error.constructor.name, status, message: String(error.message).slice(0, 2000) };
}

function versionOf(from, name) {
  // Not every package exports its package.json, so it is looked for above what it does export.
  let folder = dirname(createRequire(from).resolve(name));
  for (;;) {
    try {
      const found = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
      if (found.name === name) return found.version;
    } catch {}
    folder = dirname(folder);
  }
}

function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}
