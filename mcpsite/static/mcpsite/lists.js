// Marks the cells of a list that hold nothing: the cards of a phone leave them out.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const cell of document.querySelectorAll("#result_list td:not(.action-checkbox)")) {
    cell.classList.toggle("is-empty", ["", "-"].includes(cell.textContent.trim()));
  }
});
