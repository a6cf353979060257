// Buttons with `data-copies` put the text of the element of that id into the clipboard, also on pages without HTTPS.
"use strict";

document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copies]");
    if (!button) return;
    const said = button.querySelector("[data-said]");
    said.textContent = (await copied(document.getElementById(button.dataset.copies))) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { said.textContent = "Copy"; }, 2000);
});

async function copied(element) {
    if (navigator.clipboard) {
        try {
            await navigator.clipboard.writeText(element.textContent);
            return true;
        } catch {
            // Not allowed here: the text is selected instead.
        }
    }
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
}
