#!/bin/sh
# Replace the images in cluster.yaml by the id of the newest one in its region, so that nodes that
# start later have the same image. Run it again to refresh the id. Needs the AWS command line.
#   sh deploy/aws/pin_image.sh [cluster.yaml]
set -eu
file=${1:-cluster.yaml}
parameter=/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id

region=$(sed -n 's/^  region: \([a-z0-9-]*\).*/\1/p' "$file")
image=$(aws ssm get-parameter --region "$region" --name "$parameter" \
    --query Parameter.Value --output text)
case $image in
    ami-*) ;;
    *) echo "pin_image: $parameter is not in $region" >&2; exit 1 ;;
esac
sed "s|^\( *ImageId: &[a-z]* \)[^ ]*|\1$image|" "$file" > "$file.new"
if ! grep -q "$image" "$file.new"; then
    rm "$file.new"
    echo "pin_image: $file has no line with 'ImageId: &image'" >&2
    exit 1
fi
mv "$file.new" "$file"
echo "$file: $image in $region"
