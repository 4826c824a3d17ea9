#!/usr/bin/env bash
# From nothing to a picture: installs into .venv, draws a dataset, trains a Panoptic FPN on it,
# evaluates and exports it, and lets the exported model label pictures it has not seen.
#
#   bash tools/demo.sh
#
# Everything it writes is in demo/. Run again, it does what is missing; rm -r demo starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Without bytecode each process compiles TensorFlow's thousands of modules anew, which takes 8 s
# instead of 3 s. Containers often set this.
unset PYTHONDONTWRITEBYTECODE

readonly python=.venv/bin/python recipe=configs/demo/panoptic_fpn_demo.flags
readonly data=demo/dataset records=demo/tfrecords run=demo/run predictions=demo/predictions

heading() {
  printf '\n=== %s ===\n' "$*"
}

# step NAME TITLE COMMAND...: runs COMMAND unless it has succeeded before on what is there now.
renewed=
step() {
  local name=$1 title=$2 start=$SECONDS
  shift 2
  heading "$title"
  if [[ -z $renewed && -f demo/.done/$name ]]; then
    echo "Done before."
    return
  fi
  renewed=yes
  rm -f "demo/.done/$name"
  "$@"
  mkdir -p demo/.done
  touch "demo/.done/$name"
  echo "Took $((SECONDS - start)) s."
}

draw() {
  rm -rf "$data"
  "$python" tools/make_demo_dataset.py --output_dir="$data"
}

convert() {
  local split
  rm -rf "$records"
  for split in train val; do
    "$python" tools/create_tfrecords.py --split="$split" --output_dir="$records" \
      --image_dir="$data/$split" \
      --panoptic_json="$data/annotations/panoptic_$split.json" \
      --instances_json="$data/annotations/instances_$split.json"
  done
}

show() {
  rm -rf demo/what_the_model_sees
  "$python" tools/show_data.py --flagfile="$recipe" --output_dir=demo/what_the_model_sees
}

train() {
  "$python" tools/train.py --flagfile="$recipe" --run_dir="$run"
}

evaluate() {
  "$python" tools/eval.py --run_dir="$run" | tee demo/evaluation.txt
}

export_model() {
  rm -rf demo/saved_model
  "$python" export/export_saved_model.py --run_dir="$run" --export_dir=demo/saved_model/1
}

predict() {
  rm -rf "$predictions"
  "$python" tools/predict.py --saved_model=demo/saved_model/1 --images="$data/val" \
    --output_dir="$predictions" --contact_sheet=demo/contact_sheet.png \
    --panoptic_json="$data/annotations/panoptic_val.json"
}

heading "Installation"
bash tools/test.sh --setup_only
step draw "Drawing a dataset in COCO panoptic format: $data" draw
step convert "Writing TFRecords: $records" convert
step show "Pictures of what the model will see: demo/what_the_model_sees" show
step train "Training from scratch: $run" train
step evaluate "Evaluation on the validation images, none of them seen in training" evaluate
step export_model "Export to a SavedModel: demo/saved_model/1" export_model
step pictures "Prediction with the exported model: $predictions" predict

heading "Results"
cat demo/evaluation.txt
echo
echo "The best and the worst images beside the truth:"
find "$PWD/$run/eval" -name report.html
echo "What the exported model makes of each image that it has not seen: $PWD/$predictions/pictures"
printf '\nThe demo took %d min %02d s.\n' $((SECONDS / 60)) $((SECONDS % 60))
echo "To go on with the commands of README.md: . .venv/bin/activate"
echo "Photo, truth and prediction of the first three, not chosen: $PWD/demo/contact_sheet.png"
