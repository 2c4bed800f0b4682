import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "../i18n";
import { me } from "../matrix/session";
import { Avatar } from "./Avatar";

interface Person {
    user_id: string;
    display_name?: string;
}

const address = /^@[^:\s]+:[^\s]+$/;

/** Finds people of this company by name, and of others by their full address. */
export function PeoplePicker({ label, onPick }: { label: string; onPick(user: string, name: string): void }) {
    const text = useSignal("");
    const found = useSignal<Person[] | null>(null);
    useEffect(() => {
        const term = text.value.trim();
        if (!term) {
            found.value = null;
            return;
        }
        let current = true;
        const timer = setTimeout(async () => {
            let people: Person[] = [];
            try {
                people = (await me().searchUserDirectory({ term, limit: 8 })).results;
            } catch (error) {
                console.warn("people were not searched", error);
            }
            if (address.test(term) && !people.some((p) => p.user_id === term)) people.unshift({ user_id: term });
            if (current) found.value = people.filter((p) => p.user_id !== me().getUserId());
        }, 200);
        return () => {
            current = false;
            clearTimeout(timer);
        };
    }, [text.value]);

    function pick(person: Person): void {
        text.value = "";
        onPick(person.user_id, person.display_name ?? person.user_id);
    }

    return (
        <div class="people-picker">
            <label>
                {label}
                <input
                    type="search"
                    autocapitalize="none"
                    autocomplete="off"
                    spellcheck={false}
                    placeholder={t("new.peopleHelp")}
                    value={text.value}
                    onInput={(e) => (text.value = e.currentTarget.value)}
                    onKeyDown={(e) => {
                        if (e.key !== "Enter") return;
                        e.preventDefault();
                        const term = text.value.trim();
                        if (address.test(term)) pick({ user_id: term });
                        else if (found.value?.[0]) pick(found.value[0]);
                    }}
                />
            </label>
            {found.value && (
                <ul class="people" aria-live="polite">
                    {found.value.map((person) => (
                        <li key={person.user_id}>
                            <button class="row" aria-label={t("new.add", { name: person.display_name ?? person.user_id })} onClick={() => pick(person)} type="button">
                                <Avatar name={person.display_name ?? person.user_id} id={person.user_id} />
                                <span class="row-text">
                                    <strong>{person.display_name ?? person.user_id}</strong>
                                    <span>{person.user_id}</span>
                                </span>
                            </button>
                        </li>
                    ))}
                    {found.value.length === 0 && <li class="hint">{t("new.none")}</li>}
                </ul>
            )}
        </div>
    );
}
