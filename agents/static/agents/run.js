// Follows a run by its server-sent events. Everything that comes is shown as text, never as markup.
"use strict";

(() => {
  const run = document.getElementById("run");
  const at = (id) => document.getElementById(id);
  const pills = { succeeded: "pill-good", failed: "pill-bad", cancelled: "pill-warning" };
  const titles = { succeeded: "Answer", failed: "It failed", cancelled: "It was cancelled", deleted: "It was deleted" };
  let words = "";

  const show = (doing) => {
    at("run-now").hidden = doing === null;
    at("run-doing").textContent = doing ?? "";
    at("run-words").textContent = words;
  };

  const part = (node, name) => node.querySelector(`[data-${name}]`);

  const link = (node, record) => {
    if (!record || !run.dataset.records) return;
    const anchor = part(node, "record");
    anchor.href = run.dataset.records + encodeURIComponent(record);
    anchor.hidden = false;
  };

  const seconds = (from, to) => {
    const ms = new Date(to) - new Date(from);
    return ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`;
  };

  const argumentsOf = (value) => {
    const line = JSON.stringify(value, null, 1).replace(/\n\s*/g, " ");
    return line.length <= 80 ? line : JSON.stringify(value, null, 2);
  };

  const readable = (text) => {
    try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
  };

  const modelStep = (step) => {
    const node = at("step-model").content.firstElementChild.cloneNode(true);
    const asked = step.content.calls.map((call) => call.tool).join(", ");
    part(node, "title").textContent = asked ? `Asks for ${asked}` : "Answers";
    part(node, "text").textContent = asked ? step.content.text : "";
    return node;
  };

  const toolStep = (step) => {
    const node = at("step-tool").content.firstElementChild.cloneNode(true);
    const good = step.code === "ok";
    node.classList.add(good ? "gate-passed" : "gate-failed");
    part(node, "title").textContent = step.tool;
    part(node, "took").textContent = seconds(step.started_at, step.finished_at);
    part(node, "arguments").textContent = argumentsOf(step.content.arguments);
    part(node, "result").textContent = readable(step.content.result);
    if (!good) {
      part(node, "code").textContent = step.code;
      part(node, "code").hidden = false;
      part(node, "icon").textContent = "block";
      node.querySelector("details").open = true;
    }
    return node;
  };

  const addStep = (step) => {
    const node = step.kind === "model" ? modelStep(step) : toolStep(step);
    link(node, step.record);
    at("run-steps").append(node);
    words = "";
    count(step.kind === "model" ? "run-asked" : "run-called");
    show("Working");
  };

  const counted = {};
  const count = (id) => {
    counted[id] = (counted[id] ?? 0) + 1;
    at(id).textContent = counted[id];
  };

  const setStatus = (state) => {
    for (const pill of document.querySelectorAll("[data-run-status]")) {
      pill.textContent = state.status.charAt(0).toUpperCase() + state.status.slice(1);
      pill.className = `pill ${pills[state.status] ?? ""}`;
    }
  };

  const setFacts = (state) => {
    at("run-asked").textContent = state.model_calls;
    at("run-called").textContent = state.tool_calls;
    at("run-tokens").textContent = state.input_tokens + state.output_tokens;
    if (state.started_at && state.finished_at) at("run-took").textContent = seconds(state.started_at, state.finished_at);
  };

  const end = (state) => {
    show(null);
    setStatus(state);
    at("run-cancel")?.remove();
    at("run-answer").hidden = false;
    at("run-answer").classList.add(state.status);
    at("run-answer-title").textContent = titles[state.status] ?? state.status;
    at("run-answer-text").textContent = state.output ?? [state.message, state.code && `(${state.code})`].filter(Boolean).join(" ");
    if (state.status !== "deleted") setFacts(state);
  };

  const source = new EventSource(run.dataset.events);
  const on = (name, act) => source.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("status", (state) => {
    setStatus(state);
    show(state.status === "queued" ? "Waiting for the agent worker" : "Working");
  });
  on("delta", (delta) => { words += delta.text; show("Answers"); });
  on("calling", (call) => { show(`Calls ${call.tool}`); });
  on("step", addStep);
  on("end", (state) => { source.close(); end(state); });
})();
