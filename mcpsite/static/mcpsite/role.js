// Shows which tools the form of a role would come to: asks the server after each change, which saves nothing.
(() => {
    const panel = document.getElementById("role-tools");
    const form = panel?.closest("form");
    if (!form) return;
    let timer;
    let asked;

    async function ask() {
        asked?.abort();
        asked = new AbortController();
        panel.setAttribute("aria-busy", "true");
        try {
            const answer = await fetch(panel.dataset.url, { method: "POST", body: new FormData(form), signal: asked.signal });
            if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
            panel.innerHTML = await answer.text();
        } catch (error) {
            if (error.name === "AbortError") return;
            panel.textContent = "What the form would come to cannot be shown now. Saving still works.";
        }
        panel.removeAttribute("aria-busy");
    }

    const soon = () => {
        clearTimeout(timer);
        timer = setTimeout(ask, 200);
    };
    for (const name of ["input", "change", "formset:added", "formset:removed"]) form.addEventListener(name, soon);
    document.addEventListener("formset:removed", soon);
    // Select2 tells only jQuery that something was chosen.
    window.django?.jQuery(form).on("change", "select", soon);
})();
