"""The control map: which part of a pack supports which control, and what it cannot show.

A pack supports an assessment; whether a control is met is for the assessor. The numbers of the clauses are the
frameworks' own and should be checked by a specialist against the edition in force.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """A question that auditors ask, the clauses behind it, the files that support an answer, and their limit."""

    question: str
    clauses: tuple[tuple[str, str], ...]
    files: tuple[str, ...]
    limit: str


SOC2, ISO, HIPAA, AI = "SOC 2", "ISO/IEC 27001:2022", "HIPAA", "EU AI Act"

CONTROLS = (
    Control(
        "Who had access to which tools?",
        ((SOC2, "CC6.1, CC6.2, CC6.3"), (ISO, "A.5.15, A.5.18, A.8.2"), (HIPAA, "164.312(a)")),
        ("access/access.csv", "access/access.json", "changes.csv"),
        "Rebuilt from recorded changes; changes past the site are not seen. Who approved a grant outside of the site,"
        " and whether access was reviewed, is not shown.",
    ),
    Control(
        "Which rule let a call through, and in which version?",
        ((SOC2, "CC7.2, CC8.1"), (ISO, "A.8.32"), (AI, "Article 12")),
        ("policies.csv", "changes.csv", "samples/"),
        "Each record names the version of the policy; the version's content follows from the changes.",
    ),
    Control(
        "Are the logs complete and unaltered?",
        ((SOC2, "CC7.2"), (ISO, "A.8.15"), (HIPAA, "164.312(b), 164.312(c)"), (AI, "Article 12")),
        ("verdict.json", "samples/", "manifest.json", "verify.py", "keys.txt"),
        "The keys should be compared with ones from another source. Article 12 asks for records, not for evidence"
        " against tampering: this goes further than it.",
    ),
    Control(
        "Can the course of events be traced?",
        ((SOC2, "CC7.3"), (ISO, "A.5.28, A.8.15"), (HIPAA, "164.312(b)"), (AI, "Article 12")),
        ("population.csv", "samples/"),
        "Results of calls are committed to, and kept only where a policy says so.",
    ),
    Control(
        "Who read what is confidential, and who took records away?",
        ((SOC2, "CC6.1, C1.1"), (ISO, "A.8.15, A.8.12"), (HIPAA, "164.308(a)(1)(ii)(D), 164.312(b)")),
        ("events.csv",),
        "Each decryption of arguments and each export is an event. What somebody saw in an answer of a tool is known by"
        " its commitment only.",
    ),
    Control(
        "Were risky actions refused, and by whom could they be made?",
        ((SOC2, "CC6.1, CC7.2"), (ISO, "A.8.2, A.8.3"), (AI, "Article 14")),
        ("refusals.csv", "access/access.csv"),
        "A grant decides before a call; approvals by people of single calls are not part of this version.",
    ),
    Control(
        "Were changes made in a controlled way?",
        ((SOC2, "CC8.1"), (ISO, "A.8.32, A.8.9"), (HIPAA, "164.308(a)(1)(ii)(D)")),
        ("changes.csv",),
        "Who made a change and what it was is shown; tickets and approvals outside of the site are not.",
    ),
    Control(
        "Were keys and credentials handled and rotated?",
        ((SOC2, "CC6.1"), (ISO, "A.8.24, A.5.17"), (HIPAA, "164.312(a)(2)(iv)")),
        ("keys.csv", "keys.txt"),
        "Secrets of data sources appear as set or changed only. Rotation at the upstream is not seen.",
    ),
    Control(
        "Are records kept for as long as they must be?",
        ((SOC2, "CC7.2, C1.2"), (ISO, "A.5.33, A.8.10"), (HIPAA, "164.316(b)"), (AI, "Articles 19 and 26(6)")),
        ("retention.json",),
        "Shows the rules and certified gaps. How long is required depends on the framework and on who you are: HIPAA"
        " asks six years of documentation, the AI Act at least six months of logs where its duties apply.",
    ),
)
NOTE = (
    "This map says which files support which control. It does not say that a control is met: that is for the assessor,"
    " who should check the clauses against the edition in force. When duties of the EU AI Act begin depends on the"
    " system and on the legal text in force at the time."
)
