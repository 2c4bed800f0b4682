import { useSignal } from "@preact/signals";
import { useLayoutEffect } from "preact/hooks";
import { t } from "../i18n";
import { addressIn, lookUp, searchPeople, serverOf, type Person } from "../matrix/people";
import { problem } from "../matrix/problem";
import { me } from "../matrix/session";
import { Avatar } from "./Avatar";

interface Props {
    label: string;
    /** Addresses that are not offered. */
    without?: string[];
    onPick(person: Person): void;
}

/** Finds people of this company by name, and of others by their full address, which their server is asked about. */
export function PeoplePicker({ label, without = [], onPick }: Props) {
    const text = useSignal("");
    const found = useSignal<Person[]>([]);
    const status = useSignal("");
    const busy = useSignal(false);
    // At once: Enter must not take somebody who was found for another text.
    useLayoutEffect(() => {
        const term = text.value.trim();
        found.value = [];
        status.value = "";
        busy.value = term !== "";
        if (!term) return;
        let current = true;
        const timer = setTimeout(async () => {
            const result = await find(term, (waitingFor) => {
                if (current) status.value = waitingFor;
            });
            if (!current) return;
            busy.value = false;
            found.value = result.people.filter((p) => !without.includes(p.user));
            status.value = result.trouble ?? "";
        }, 250);
        return () => {
            current = false;
            clearTimeout(timer);
        };
    }, [text.value]);

    function pick(person: Person): void {
        text.value = "";
        onPick(person);
    }

    const server = serverOf(me().getUserId()!);
    return (
        <div class="people-picker">
            <label>
                {label}
                <input
                    type="search"
                    autocapitalize="none"
                    autocomplete="off"
                    spellcheck={false}
                    placeholder={t("people.placeholder")}
                    aria-describedby="people-help"
                    value={text.value}
                    onInput={(e) => (text.value = e.currentTarget.value)}
                    onKeyDown={(e) => {
                        if (e.key !== "Enter" || !text.value.trim()) return;
                        e.preventDefault();
                        if (found.value[0]) pick(found.value[0]);
                    }}
                />
                <small id="people-help">{t("people.help", { server })}</small>
            </label>
            <ul class="people">
                {found.value.map((person) => (
                    <li key={person.user}>
                        <button class="row" aria-label={t("new.add", { name: `${person.name}, ${person.user}` })} onClick={() => pick(person)} type="button">
                            <Avatar name={person.name} id={person.user} />
                            <span class="row-text">
                                <strong dir="auto">{person.name}</strong>
                                <span>{person.user}</span>
                                {person.doubt && <span class="doubt">{person.doubt}</span>}
                            </span>
                            {serverOf(person.user) !== server && !person.doubt && <span class="tag">{t("people.elsewhere")}</span>}
                        </button>
                    </li>
                ))}
            </ul>
            <p class="hint" role="status">
                {status.value || (busy.value ? t("people.searching") : text.value && found.value.length === 0 ? t("new.none") : "")}
            </p>
        </div>
    );
}

/** Looks in the directory, and asks the server of a full address. */
async function find(term: string, waiting: (forWhat: string) => void): Promise<{ people: Person[]; trouble?: string }> {
    const address = addressIn(term);
    if (address === me().getUserId()) return { people: [], trouble: t("people.yourself") };
    if (address) waiting(t("people.asking", { server: serverOf(address) }));
    try {
        const [directory, person] = await Promise.all([searchPeople(address ?? term), address ? lookUp(address) : undefined]);
        const people = person ? [person, ...directory.filter((p) => p.user !== person.user)] : directory.filter((p) => p.user !== address || !address);
        if (address && !person) return { people: [], trouble: t("people.nobody", { address, server: serverOf(address) }) };
        return { people };
    } catch (error) {
        return { people: [], trouble: problem(error) };
    }
}
