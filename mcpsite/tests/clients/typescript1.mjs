// One visit of the TypeScript SDK 1.x: takes its task as JSON, prints what it met as JSON.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
} from "@modelcontextprotocol/sdk/types.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const task = JSON.parse(process.argv[2]);
const capabilities = task.asking ? { elicitation: {}, sampling: {} } : {};
const client = new Client({ name: "typescript-1", version: "1.0.0" }, { capabilities });
const headers = task.token ? { Authorization: `Bearer ${task.token}` } : {};
const transport = new StreamableHTTPClientTransport(new URL(task.url), { requestInit: { headers } });

async function beAsked() {
  const met = { answers: [], progress: [], logged: [] };
  const content = { username: "ada", email: "ada@example.com" };
  client.setRequestHandler(ElicitRequestSchema, () => ({ action: "accept", content }));
  const said = { type: "text", text: "Paris" };
  client.setRequestHandler(CreateMessageRequestSchema, () => ({ role: "assistant", model: "none", content: said }));
  client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => void met.logged.push(params.data));
  await client.setLoggingLevel("info");
  const onprogress = ({ progress }) => met.progress.push(progress);
  for (const call of task.asking) {
    met.answers.push((await client.callTool(call, undefined, { onprogress })).content[0].text);
  }
  await client.close();
  return met;
}

async function visit() {
  try {
    await client.connect(transport);
  } catch (error) {
    return { turned_away: error.code };
  }
  const met = { revision: transport.protocolVersion, calls: [] };
  if (task.asking) return { ...met, ...(await beAsked()) };
  met.tools = (await client.listTools()).tools;
  for (const call of task.calls) {
    met.calls.push(await client.callTool(call).catch(({ code, message }) => ({ refused: { code, message } })));
  }
  met.prompts = (await client.listPrompts()).prompts.map(({ name }) => name);
  met.resources = (await client.listResources()).resources.map(({ uri }) => uri);
  met.templates = (await client.listResourceTemplates()).resourceTemplates.map(({ uriTemplate }) => uriTemplate);
  met.prompt = (await client.getPrompt(task.prompt)).messages[0].content.text;
  met.text = (await client.readResource({ uri: task.uri })).contents[0].text;
  const ref = { type: "ref/prompt", name: task.prompt.name };
  met.completed = (await client.complete({ ref, argument: task.argument })).completion.values;
  await client.close();
  return met;
}

console.log(JSON.stringify(await visit()));
