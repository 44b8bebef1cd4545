# words.pl TEXT: counts words by their letters, with regular expressions and sorting.
use strict;
use warnings;

my (%count, %anagrams);
while (my $line = <>) {
    $count{$_}++ for $line =~ /(\w+)/g;
    $line =~ s/([aeiou])(\w)/$2$1/g;
    $count{"$1-$2"}++ while $line =~ /\b(\w)\w*?(\w)\b/g;
}
push @{ $anagrams{ join '', sort split //, $_ } }, $_ for sort keys %count;
print "$_ $count{$_}\n" for sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count;
print join(' ', @{ $anagrams{$_} }), "\n" for grep { @{ $anagrams{$_} } > 1 } sort keys %anagrams;
my $sum = 0;
$sum += sqrt $count{$_} for sort keys %count;
printf "%.6f\n", $sum;
