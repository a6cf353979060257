// Names what the widgets of Django and select2 leave nameless, for those who hear a page instead of seeing it.
"use strict";

// A field of a table is named by its column.
const nameOf = (field) =>
  (field.labels[0]?.textContent ?? field.closest("td")?.dataset.label ?? field.name).trim();

const giveNames = () => {
  for (const tooltip of document.querySelectorAll(".selector .help-tooltip[aria-label]:not([role])")) {
    tooltip.setAttribute("role", "img");
  }
  for (const field of document.querySelectorAll("td.field-tabular :is(input, select, textarea):not([aria-label], [type=hidden])")) {
    if (!field.labels.length) field.setAttribute("aria-label", nameOf(field));
  }
  for (const select of document.querySelectorAll("select.select2-hidden-accessible:not([data-named])")) {
    const shown = select.nextElementSibling?.querySelectorAll("[role=combobox], [role=textbox]") ?? [];
    for (const part of shown) part.setAttribute("aria-label", nameOf(select));
    if (shown.length) select.dataset.named = "";
  }
  // Its list of what was chosen holds a field and a button: to those who hear it, it is a group.
  for (const list of document.querySelectorAll(".select2-selection--multiple > ul")) {
    const select = list.closest(".select2-container").previousElementSibling;
    list.setAttribute("role", "group");
    for (const item of list.querySelectorAll("li:not([role])")) item.setAttribute("role", "presentation");
    for (const field of list.querySelectorAll("input:not([aria-label])")) field.setAttribute("aria-label", nameOf(select));
  }
};

document.addEventListener("DOMContentLoaded", () => {
  new MutationObserver(giveNames).observe(document.body, { childList: true, subtree: true });
  giveNames();
});
